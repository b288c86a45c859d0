"""How torch.compile compiles a decode step: Inductor, with linear layers as operations of their own.

Inductor calls oneDNN only for weights that are frozen into the graph as constants, and for a fixed number of rows. Left
alone it calls MKL, and a compiled step of a Llama of 12 layers of 768 takes as long as one that is not (85 ms for 16
rows on one core; 45 with this). So a linear layer is an operation here, which finds its weight's reordered copy when it
runs. Nothing is frozen: one graph serves all numbers of rows, and weights that have changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..model.linears import onednn
from ..model.upstream.linears import ADDMM
from .reordered import ReorderedWeights

logger = logging.getLogger("relay_hf")

_LIBRARY = torch.library.Library("relay_hf", "FRAGMENT")
_LIBRARY.define(
    "reordered_linear(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(eq=False)
class StepRun:
    """One run of a compiled step.

    Attributes:
        weights: the reordered weights that it uses, or None if PyTorch is to compute its linear layers.
        compilations: how often it was compiled in this run.
        started: when its graph began to run, in seconds of `perf_counter`; None before.
    """

    weights: ReorderedWeights | None
    compilations: int = 0
    started: float | None = None


step_run: ContextVar[StepRun] = ContextVar("relay_hf_step_run")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    weights = step_run.get().weights
    plain = weight.T if transposed else weight
    used = plain if weights is None else weights.of(weight, transposed)
    return torch.ops.mkldnn._linear_pointwise.default(x, used, bias, "none", [], "")


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1 if transposed else 0])


_LIBRARY.impl("reordered_linear", _linear, "CPU")
torch.library.register_fake("relay_hf::reordered_linear", _fake, lib=_LIBRARY)


def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph: a backend of torch.compile."""
    from torch._inductor.compile_fx import compile_fx

    step_run.get().compilations += 1
    if step_run.get().weights is not None:
        for node in graph.graph.find_nodes(op="call_function", target=nn.functional.linear):
            x, weight, bias = (*node.args, None)[:3]
            _replace(node, x, weight, bias, transposed=False)
        for node in graph.graph.find_nodes(op="call_function", target=getattr(torch, ADDMM)):
            bias, x, weight = node.args
            _replace(node, x, weight, bias, transposed=True)
        graph.recompile()
    compiled: Any = compile_fx(graph, inputs)

    def run(*arguments: Any) -> Any:
        current = step_run.get()
        current.started = current.started or perf_counter()
        return compiled(*arguments)

    return run


def _replace(node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None, transposed: bool) -> None:
    if _fits(x, weight) and not node.kwargs:
        node.target, node.args = torch.ops.relay_hf.reordered_linear.default, (x, weight, bias, transposed)


def _fits(x: fx.Node, weight: fx.Node) -> bool:
    """Whether oneDNN computes a linear layer in the arithmetic of its dtype."""
    given, held = (node.meta.get("example_value") for node in (x, weight))
    if weight.op != "placeholder" or not isinstance(given, Tensor) or not isinstance(held, Tensor):
        return False
    plain = held.is_cpu and held.dim() == 2 and held.is_contiguous() and given.dtype is held.dtype
    if not plain or onednn.fault():
        return False
    if held.dtype is torch.float32:
        return onednn.is_single_precision()
    return held.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def missing_compiler() -> str | None:
    """Why Inductor can't compile for a CPU here, or None. It is logged by one line, once a process."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        why = f"no C++ compiler was found ({type(error).__name__}); install g++, or name one by CXX"
        logger.warning("relay_hf: decode steps can't be compiled: %s. This is said once.", why)
        return why
    return None
