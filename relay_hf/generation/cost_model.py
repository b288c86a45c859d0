"""`policy="auto"`: whether relaying a call is expected to be faster than stock.

This is the cost model. Relaying saves prefill (arithmetic) and traffic of decoding (stock re-reads the prefix for each
row, and copies all KV at every step). Relaying costs another pass over the weights when a prefix is prefilled, and host
time in every layer of every decode step. Where the constants err they should err towards stock.

On a CPU they were fitted on two cores of a 2.6 GHz AVX-512 machine in float32 over calls of 1 to 16 rows, 64 to 512
shared and 8 to 256 own tokens, 1 and 32 new ones. On a GPU the rates are the data sheet's of the fastest chip of a
generation, so that savings are underestimated. Times were measured on an H200 (Llama shapes of 8 and 32 layers, 1 to 32
rows). `python -m benchmarks.gpu --sections gate` measures calls beside the model's expectation. Calls on a kind of GPU
without such a committed result are left to stock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..reasons import Reason, Refusal

_FORWARD_HOST = 1.2e-3  # seconds of Python for a decoder layer of a forward, on a 2.5 GHz core
_OWN_CODE = 6  # times the operator's overhead: 0.7 ms a layer in place of 0.12, with tiny operands
_KEEPING = 5e-4  # seconds a layer to keep a row: the model is compared three times, and the row's KV is copied
_RETURNS = 0.25  # chance that a later call starts with the same tokens as a single row
_STOCK_COPIES = 3  # a DynamicCache reads and writes all KV to append to it, and reads it to attend


@dataclass(frozen=True)
class Machine:
    """How fast a device computes.

    Attributes:
        flops: operations a second that a prefill reaches.
        bandwidth: bytes a second, of weights and KV alike.
        layer_overhead: seconds that relaying adds to a decoder layer of a decode step, once for each part.
        layer_host: seconds of the host for a decoder layer, which overlap with the device's.
        layer_device: seconds of the device for a decoder layer of a step, without those to move weights and KV.
        replayed_overhead: `layer_overhead` of a step that is replayed as a CUDA graph, and takes no time of the host.
        layer_capture: seconds to capture a decoder layer.
        linears: how many times as fast relayed forwards multiply by weights as stock's.
    """

    flops: float
    bandwidth: float
    layer_overhead: float
    layer_host: float = 0.0
    layer_device: float = 0.0
    replayed_overhead: float = 0.0
    layer_capture: float = 0.0
    linears: float = 1.0

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Machine | None:
        """The machine of `device`, computing in `dtype`; None for a kind of device that was never measured."""
        if device.type == "cpu":
            # A product of 512 rows reaches 1.9e11. The overhead is the difference between attention in two parts and
            # in one part, with tiny operands: 1.0e-4.
            return cls(2.0e11 * torch.get_num_threads(), 2.0e10, 1.2e-4)
        if device.type != "cuda" or torch.version.hip is not None:
            return None
        generation = torch.cuda.get_device_capability(device)[0]
        half, single, bandwidth = next(rates for first, rates in _GENERATIONS.items() if generation >= first)
        # A step of stock takes the host 0.66e-3 to 1.1e-3 s a layer, a relayed one that is not replayed 0.4e-3 more.
        # Replayed, it takes the device 1.3e-4 s a layer on top of its bytes, for norms, rotations and launches.
        rate = single if dtype is torch.float32 else half
        return cls(rate, bandwidth, 4.0e-4, 0.6e-3, 1.0e-4, 3.0e-5, 5.0e-3)


# First numbers of the compute capabilities with a committed result of `python -m benchmarks.gpu`, which shows that the
# kernels are right there, and to which the constants were fitted. On others "auto" leaves calls to stock.
MEASURED = frozenset({9})

# By first number of the compute capability: FLOP/s in 16 bit (dense, float32 sums) and in float32, bytes/s. From data
# sheets: of the B200 and the H200, and for all before them the best of the A100 and the RTX 4090.
_GENERATIONS = {
    10: (2.5e15, 1.3e14, 8.0e12),
    9: (9.9e14, 6.7e13, 4.8e12),
    0: (3.3e14, 8.3e13, 2.0e12),
}


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: parameters, bytes of a weight, layers, bytes of a token's KV in a layer, on average."""

    parameters: int
    itemsize: int
    layers: int
    kv_bytes: int

    @classmethod
    def of(cls, modules: Iterable[nn.Module], config: PreTrainedConfig, attending: float = 1.0) -> ModelCost:
        """Read it off the modules and the decoder's configuration. `attending`: share of the layers that keep KV.

        It counts the weights that a prompt token is multiplied with. It leaves out the embedding and the head, which
        have a row for each word. Of stacked experts (3-D) it counts the share that a token is routed to.

        Raises:
            AttributeError, RuntimeError, TypeError, ValueError: the configuration has its sizes under other names, or
                by layer.
        """
        weights = {id(p): p for module in modules for p in module._parameters.values() if p is not None}.values()
        routed = getattr(config, "num_experts_per_tok", None) or 1
        count = sum(
            p.numel() * routed // p.shape[0] if p.dim() == 3 else p.numel()
            for p in weights
            if p.dim() < 2 or p.shape[0] != config.vocab_size
        )
        itemsize = next(iter(weights)).element_size()
        kv_bytes = 0
        if attending:
            heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            kv_bytes = 2 * int(heads) * int(size) * itemsize
        return cls(int(count), itemsize, int(config.num_hidden_layers), int(attending * kv_bytes))


@dataclass(frozen=True)
class Shape:
    """The rows and tokens of a call.

    Attributes:
        rows: rows of the call.
        computed: prompt tokens that a relayed call computes.
        new: tokens to be generated for a row, at most.
        runs: the runs that rows would share: tokens, rows, and whether an earlier call has kept it, of each.
        forwards: forwards for the runs that are not kept.
        keeping: own prompt tokens of a single row that is to be kept for later calls.
        passes: forwards for the rows' own tokens: more than one where recurrent layers forbid padding.
        own_code: attention is the model's own code, over split tensors.
        replayed: decode steps will be replays of a CUDA graph.
    """

    rows: int
    new: int
    runs: tuple[tuple[int, int, bool], ...] = ()
    forwards: int = 0
    keeping: int = 0
    passes: int = 1
    own_code: bool = False
    replayed: bool = False
    computed: int = 0


def costs(
    modules: Iterable[nn.Module],
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    attending: float = 1.0,
    linears: Callable[[int], float] | None = None,
) -> tuple[ModelCost, Machine] | Refusal:
    """The costs of the model of `modules` and `config`, and its machine; or the reason why they are not known.

    `linears`: `Machine.linears` of a model with so many parameters; None: 1.
    """
    machine = Machine.of(device, dtype)
    if machine is None:
        return Reason.DEVICE_COST.of(device=device.type)
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in MEASURED:
        return Reason.DEVICE_UNMEASURED.of()
    try:
        model = ModelCost.of(modules, config, attending)
        return model, machine if linears is None else replace(machine, linears=linears(model.parameters))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return Reason.MODEL_COST.of(error=type(error).__name__)


@dataclass(frozen=True)
class Verdict:
    """Whether relaying a call is expected to pay.

    Attributes:
        gain: seconds that relaying is expected to save, at least; None if that is not known.
        refused: why relaying is not expected to pay, or None.
    """

    gain: float | None
    refused: Refusal | None


def judge(
    shape: Shape,
    modules: Iterable[nn.Module],
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    attending: float = 1.0,
    linears: Callable[[int], float] | None = None,
) -> Verdict:
    """Whether relaying a call of the model of `modules` and `config` is expected to pay."""
    known = costs(modules, config, device, dtype, attending, linears)
    if isinstance(known, Refusal):
        return Verdict(None, known)
    gain = expected_gain(shape, *known)
    return Verdict(gain, None if gain > 0 else Reason.COSTS_MORE.of(milliseconds=-gain * 1e3))


def run_gain(
    tokens: int, ways: int, kept: bool, new: int, model: ModelCost, machine: Machine, replayed: bool = False
) -> float:
    """Seconds that one more run is expected to save, compared with adding its tokens to each of its `ways` on.

    It saves the prefill of all ways but one (of all, if the run is kept). In each of `new` steps it saves reading the
    KV of the other ways. It costs a forward, unless it is kept, and one more part of attention in every layer of every
    step.
    """
    copies = (ways - 1) * tokens
    overhead = machine.replayed_overhead if replayed else machine.layer_overhead
    step = model.layers * (copies * model.kv_bytes / machine.bandwidth - overhead)
    prefill = (copies + kept * tokens) * 2 * model.parameters / (machine.flops * machine.linears)
    return prefill - (not kept) * _forward(model, machine) + new * step


def expected_gain(shape: Shape, model: ModelCost, machine: Machine) -> float:
    """Seconds that relaying is expected to save."""
    stocks = sum(tokens * rows for tokens, rows, _ in shape.runs)
    shared = sum(tokens for tokens, _, _ in shape.runs)
    computed = sum(tokens for tokens, _, kept in shape.runs if not kept)
    saved = stocks - computed + _RETURNS * shape.keeping
    faster = shape.computed * (1 - 1 / machine.linears)
    prefill = (saved + faster) * 2 * model.parameters / machine.flops
    passes = (shape.forwards + shape.passes - 1) * _forward(model, machine)

    # A step takes the longer one of the device's and the host's time.
    weights = model.parameters * model.itemsize / machine.bandwidth
    device = weights + model.layers * machine.layer_device
    host = model.layers * machine.layer_host
    token = model.layers * model.kv_bytes / machine.bandwidth
    stock_step = max(host, device + _STOCK_COPIES * (stocks + shape.keeping) * token)
    parts = len(shape.runs) or bool(shape.keeping)
    once = model.layers * _KEEPING if shape.keeping else 0.0
    device += (shared + shape.keeping) * token - weights * (1 - 1 / machine.linears)
    if shape.replayed:
        once += model.layers * machine.layer_capture
        step = device + model.layers * machine.replayed_overhead * parts
    else:
        overhead = machine.layer_overhead * (_OWN_CODE if shape.own_code and shape.runs else parts)
        step = max(host, device) + model.layers * overhead
    return prefill - passes - once + shape.new * (stock_step - step)


def _forward(model: ModelCost, machine: Machine) -> float:
    """Seconds that one more forward takes beside its arithmetic: a pass over the weights, or the host's Python."""
    weights = model.parameters * model.itemsize / (machine.bandwidth * machine.linears)
    return max(weights, model.layers * _FORWARD_HOST)
