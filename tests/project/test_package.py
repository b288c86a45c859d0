"""The package as it is imported."""

import subprocess
import sys

import relay_hf


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sorted(set(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_loads_nothing_heavy():
    assert not {"torch", "triton", "transformers"} & loaded_after("import relay_hf")
    assert not {"triton", "transformers"} & loaded_after("import relay_hf; relay_hf.ops.relay_attention")


def test_exports_are_sorted_and_there():
    assert sorted(relay_hf.__all__) == relay_hf.__all__
    assert set(relay_hf.__all__) <= set(dir(relay_hf))
    for name in relay_hf.__all__:
        assert getattr(relay_hf, name).__doc__
