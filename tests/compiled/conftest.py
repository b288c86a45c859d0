"""Compiled steps without Inductor where only what is around the compiled code is tested: it takes seconds."""

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture
def no_graphs():
    """torch.compile knows no graph, before and after."""
    torch.compiler.reset()
    counters.clear()
    yield counters["stats"]
    torch.compiler.reset()


@pytest.fixture
def traced(no_graphs, monkeypatch):
    """A step is traced as it is to be compiled, and the trace then runs as it is. The number of traces."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graph)
    return lambda: no_graphs["unique_graphs"]
