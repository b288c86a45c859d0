"""Graphs on the CPU, in the place of CUDA's."""

import pytest

from relay_hf.attention import layer
from relay_hf.graphs import capture

from .cpu_graph import CpuGraph, attend_by_tables


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were made, in their order."""
    made = []

    def new_graph(where):
        made.append(CpuGraph())
        return made[-1]

    attend = layer.attend

    def attend_or_by_tables(plan, query, segments, key, value, **how):
        if plan.tables is None:
            return attend(plan, query, segments, key, value, **how)
        return attend_by_tables(plan, query, key, value, **how)

    monkeypatch.setattr(capture, "supports", lambda where: True)
    monkeypatch.setattr(capture, "new_graph", new_graph)
    monkeypatch.setattr(layer, "attend", attend_or_by_tables)
    return made
