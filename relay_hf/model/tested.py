"""The versions and devices that this release was tested with, and those that no test ran. It imports nothing.

Tests compare each version with the files that pin the test environments, and with the results of the benchmarks.
"""

from __future__ import annotations

# In full with the last one; with the others, what another Transformers may change.
TRANSFORMERS = ("5.17.0", "5.23.0", "5.24.0")

# By device: of all tests, and of the GPU benchmark, which checks tokens and attention before it measures.
PYTORCH = {"CPU": "2.13.0", "CUDA": "2.11.0"}
PYTHON = {"CPU": "3.11", "CUDA": "3.12"}

DEVICES = {
    "CPU": "every test runs on it",
    "CUDA": "the GPU benchmark ran on an NVIDIA H200, with Transformers 5.17.0; "
    'policy "auto" relays on Hopper, and leaves calls to stock on other GPUs',
    "ROCm": 'never tried; kernels and graphs refuse it; policy "auto" leaves calls to stock',
    "MPS, XPU": 'never tried; kernels and graphs need CUDA; policy "auto" leaves calls to stock',
}

# Where policy "auto" relays, and where it leaves calls to stock.
RELAYED_BY_DEFAULT = ("CPU", "NVIDIA Hopper")
STOCK_BY_DEFAULT = ("other NVIDIA GPUs", "ROCm", "MPS", "XPU")

NOT_RUN = (
    "versions of Transformers between and after those above",
    "PyTorch after 2.13.0, and on CUDA any but 2.11.0",
    "Triton after 3.7.1, and on CUDA any but 3.6.0",
    "Python 3.13 and later, and the tests on 3.12",
    "systems other than Linux on x86_64",
)
