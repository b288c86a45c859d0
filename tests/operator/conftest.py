"""Fixtures of the operator's tests."""

import pytest

from relay_hf.kernels import parts


@pytest.fixture(params=["fused", "matmul"])
def kernel(request, monkeypatch):
    """Both ways to compute a part, for the inputs that the fused kernel would take."""
    if request.param == "matmul":
        monkeypatch.setattr(parts, "fused_part", lambda *arguments: parts.matmul_part(*arguments, None))
    return request.param
