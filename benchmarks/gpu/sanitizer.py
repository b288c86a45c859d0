"""NVIDIA's compute-sanitizer over one small call of each kernel."""

from __future__ import annotations

import itertools
import re
import shutil

from .cases import ONE_CALL
from .context import Context, LeftOut
from .processes import module, output_of
from .store import Record

TOOL = "compute-sanitizer"
_TIMEOUT = 120  # s
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (.*)")


def cells(dry_run: bool) -> dict[str, tuple[str, str]]:
    """Tools by kernels."""
    return {
        f"{tool} {kernel}": (tool, kernel) for tool, kernel in itertools.product(("memcheck", "racecheck"), ONE_CALL)
    }


def run(context: Context, cell: tuple[str, str]) -> Record:
    """Run a kernel under a tool."""
    tool, kernel = cell
    if context.dry_run:
        raise LeftOut("needs a GPU")
    if shutil.which(TOOL) is None:
        raise LeftOut(f"{TOOL} is not on the PATH")
    command = (TOOL, "--tool", tool, *module("one_call", kernel))
    # Without torch's own cache of memory an access beyond a tensor is one beyond an allocation.
    return verdict(output_of(*command, timeout=_TIMEOUT, PYTORCH_NO_CUDA_MEMORY_CACHING="1")[1])


def verdict(output: str) -> Record:
    """What a run's output says.

    Raises:
        LeftOut: the tool could not check this process.
    """
    summary = _SUMMARY.findall(output)
    if not summary or "not supported" in output:
        raise LeftOut(f"{TOOL} did not run: {' '.join(output.split())[-300:]}")
    record = {"passed": summary[-1].startswith("0 ") and "output finite" in output, "summary": summary[-1]}
    return record if record["passed"] else record | {"output": output[-4000:]}
