"""`policy="auto"`: whether relaying a call is expected to be faster than stock.

A cost model of four terms. Relaying saves prefill (arithmetic) and traffic of decoding (stock re-reads the prefix for
each row, and copies all KV at every step); it costs another pass over the weights when a prefix is prefilled, and host
time in every layer of every decode step. The constants were fitted on two cores of a 2.6 GHz AVX-512 machine in
float32 over calls of 1 to 16 rows, 64 to 512 shared and 8 to 256 own tokens, 1 and 32 new ones; where they err they
should err towards stock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

_FLOPS_PER_THREAD = 2.0e11  # 1.9e11 reached by a product of 512 rows
_BANDWIDTH = 2.0e10  # bytes/s, of weights and KV alike
_LAYER_OVERHEAD = 1.2e-4  # s; a decode step of attention in two parts over one in one part, tiny operands: 1.0e-4
_STOCK_COPIES = 3  # a DynamicCache reads and writes all KV to append to it, and reads it to attend


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: parameters, bytes of a weight, layers, bytes of a token's KV in one layer."""

    parameters: int
    itemsize: int
    layers: int
    kv_bytes: int

    @classmethod
    def of(cls, modules: Iterable[nn.Module], config: PreTrainedConfig) -> ModelCost:
        """Read it off the modules and the decoder's configuration.

        Counted are the weights that a prompt token meets: not the embedding and the head, which have a row for each
        word, and of stacked experts (3-D) the share that is routed to.

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
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(int(count), itemsize, int(config.num_hidden_layers), 2 * int(heads) * int(size) * itemsize)


@dataclass(frozen=True)
class Shape:
    """A call: rows, and tokens.

    Attributes:
        rows: rows of the call.
        prefix: tokens that would be shared.
        reused: how many of them are kept from before.
        new: tokens to be generated for a row, at most.
        returning: a single row whose start has been seen before and is not kept: later calls are to save it.
    """

    rows: int
    prefix: int
    reused: int
    new: int
    returning: bool = False


def refusal(shape: Shape, modules: Iterable[nn.Module], config: PreTrainedConfig, device_type: str) -> str | None:
    """Why relaying a call of the model of `modules` and `config` is not expected to pay, or None."""
    if device_type != "cpu":
        return f"policy 'auto': this version is not measured on {device_type}; policy='always' relays"
    try:
        cost = ModelCost.of(modules, config)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"policy 'auto': what the model costs is not known ({type(error).__name__}); policy='always' relays"
    gain = expected_gain(shape, cost, torch.get_num_threads())
    return None if gain > 0 else f"policy 'auto': relaying is expected to cost {-gain * 1e3:.0f} ms more than it saves"


def expected_gain(shape: Shape, model: ModelCost, threads: int) -> float:
    """Seconds that relaying is expected to save."""
    computed = shape.prefix - shape.reused
    saved = shape.prefix if shape.returning else shape.rows * shape.prefix - computed
    prefill = saved * 2 * model.parameters / (_FLOPS_PER_THREAD * threads)
    second_pass = model.parameters * model.itemsize / _BANDWIDTH if computed and not shape.returning else 0.0
    traffic = (_STOCK_COPIES * shape.rows - 1) * shape.prefix * model.kv_bytes / _BANDWIDTH
    return prefill - second_pass + shape.new * model.layers * (traffic - _LAYER_OVERHEAD)
