"""Fixtures of the operator's tests."""

import pytest

from relay_hf.kernels.torch import backend, partial


@pytest.fixture(params=["step", "fused", "matmul"])
def kernel(request, monkeypatch):
    """All ways to compute a part, for the inputs of a decode step that the fused kernel takes."""
    if request.param != "step":
        monkeypatch.setattr(backend, "fits", lambda *arguments: False)
    if request.param == "matmul":
        for module in (partial, backend):
            monkeypatch.setattr(module, "fusable", lambda *tensors: False)
    return request.param
