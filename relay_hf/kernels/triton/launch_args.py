"""The arguments of a kernel launch: the tensors of an attention call, their addresses, and compile-time constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

from ..arguments import OwnColumns, ScoreOptions
from ..plan import Plan
from ..segment import Segment
from .device_tables import DeviceTableCache, to_device
from .graph_tables import DecodeTables
from .softmax import attend_range
from .tuning import overlaps

_VECTOR = 16  # bytes of the widest load
_WIDEST = 2**30  # tokens of "no window": more than any position, and small enough for sums in int32

# Whether kernels run in Triton's interpreter: with TRITON_INTERPRET=1 no kernel is compiled.
INTERPRETED = not isinstance(attend_range, triton.JITFunction)

_MOST_TABLES = 4096  # of 48 bytes a segment: with several segments each layer may have its own

_addresses: DeviceTableCache[torch.Tensor] = DeviceTableCache(_MOST_TABLES)

# The names of `LaunchArgs.numbers`. Triton does not specialize on them, so that one compiled variant serves all values.
# ALIGNMENT says which number divides the strides among them.
NUMBERS = [
    *(
        f"{tensor}_stride_{axis}"
        for tensor, axes in (("query", "bht"), ("key", "bhn"), ("value", "bhn"))
        for axis in axes
    ),
    "mask_stride_b",
    "scale",
    "softcap",
    "window",
    "query_length",
    "columns",
]


class SharedOperands(NamedTuple):
    """The segments of a call, and how a kernel finds their keys and values.

    Attributes:
        segments: the segments that have tokens and rows.
        keys, values: keys and values of the segments, with a last stride of 1; the own ones if there are no segments.
        addresses: `[segments, 6]` int64, in elements from the first segment: offset, head stride and token stride of
            keys, then of values. Segments that lie in one tensor have the same addresses in every layer.
        tables: for a step that is captured, the tables of addresses (from the own tensors) and of work; else None.
    """

    segments: Sequence[Segment]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    addresses: torch.Tensor
    tables: DecodeTables | None


@dataclass(frozen=True, eq=False)
class LaunchArgs:
    """The arguments of a call as its kernels take them.

    Attributes:
        query, key, value: as given, with a last stride of 1.
        shared: the segments.
        columns: number of own columns, filled or not.
        own: the plan's own_start, own_length and own_mask, on the query's device, with a last stride of 1.
        options: as given, with sinks on the query's device.
        alignment: every offset and stride is a multiple of this number of elements: 16 bytes of them, or 1.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    shared: SharedOperands
    columns: int
    own: OwnColumns
    options: ScoreOptions
    alignment: int

    @classmethod
    def of(
        cls,
        plan: Plan,
        query: torch.Tensor,
        segments: Sequence[Segment],
        key: torch.Tensor,
        value: torch.Tensor,
        options: ScoreOptions,
    ) -> LaunchArgs:
        """Collect the arguments, and look up the addresses."""
        segments = [segment for segment in segments if segment.length and segment.rows != ()]
        query, key, value = _dense(query), _dense(key), _dense(value)
        size = query.element_size()
        numbers: list[int] = []
        tables = plan.tables
        if tables is None:
            keys = [_dense(segment.key) for segment in segments] or [key[0]]
            values = [_dense(segment.value) for segment in segments] or [value[0]]
            for segment_key, segment_value in zip(keys, values, strict=True):
                for tensor, base in ((segment_key, keys[0]), (segment_value, values[0])):
                    numbers += [(tensor.data_ptr() - base.data_ptr()) // size, tensor.stride(0), tensor.stride(1)]
            addresses = _addresses.get(
                tuple(numbers), query.device, lambda: to_device(numbers, query.device, torch.int64)
            )
        elif isinstance(tables, DecodeTables):
            keys, values, addresses = [key], [value], tables.addresses(key)
        else:
            raise TypeError(f"plan.tables must be DecodeTables for the Triton kernels; got {type(tables).__name__}")

        vector = _VECTOR // size
        steps = [*numbers, *query.stride()[:3], *key.stride()[:3], *value.stride()[:3]]
        starts = [tensor.data_ptr() for tensor in (query, key, value, keys[0], values[0])]
        aligned = not any(step % vector for step in steps) and not any(start % _VECTOR for start in starts)
        aligned = aligned and (tables is None or tables.aligned)
        if options.sinks is not None:
            sinks = _beside(query, options.sinks)
            options = ScoreOptions(options.scale, options.sliding_window, options.softcap, sinks)
        own = (_beside(query, tensor) for tensor in (plan.own_start, plan.own_length, plan.own_mask))
        return cls(
            query=query,
            key=key,
            value=value,
            shared=SharedOperands(segments, keys, values, addresses, tables),
            columns=plan.columns,
            own=OwnColumns(*own),
            options=options,
            alignment=vector if aligned else 1,
        )

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def width(self) -> int:
        """The larger head size."""
        return max(self.query.shape[3], self.value.shape[3])

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """Values of `NUMBERS`."""
        return (
            *self.query.stride()[:3],
            *self.key.stride()[:3],
            *self.value.stride()[:3],
            0 if self.own.mask is None else self.own.mask.stride(0),
            self.options.scale,
            1.0 if self.options.softcap is None else self.options.softcap,
            0 if self.options.sliding_window is None else min(self.options.sliding_window, _WIDEST),
            self.query.shape[2],
            self.columns,
        )

    @property
    def overlapping(self) -> dict[str, object]:
        """Options of a launch that may begin while the one before it still runs, and waits for that one by itself."""
        overlap = not INTERPRETED and overlaps(self.query.device)
        return {"OVERLAP": True, "launch_pdl": True} if overlap else {"OVERLAP": False}

    @property
    def constants(self) -> dict[str, object]:
        """Compile-time constants that both kernels take."""
        head_size, value_size = self.query.shape[3], self.value.shape[3]
        return {
            "KV_HEADS": self.key.shape[1],
            "GROUP": self.group,
            "HEAD_SIZE": head_size,
            "VALUE_SIZE": value_size,
            "BLOCK_D": max(16, next_power_of_2(head_size)),
            "BLOCK_DV": max(16, next_power_of_2(value_size)),
            "ALIGNMENT": self.alignment,
            "WINDOW": self.options.sliding_window is not None,
            "SOFTCAP": self.options.softcap is not None,
            "OWN_START": self.own.start is not None,
            "OWN_LENGTH": self.own.length is not None,
            "HOLES": self.own.mask is not None,
            # The interpreter (of Triton 3.9) computes a product of bfloat16 on raw bits: errors of 1e10.
            "UPCAST": INTERPRETED and self.query.dtype is torch.bfloat16,
        }


def ceil_div(number: int, by: int) -> int:
    """Rounded up. Triton's own, made for kernels, takes 2 us on the host."""
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The least power of two from `number` on."""
    return 1 << (number - 1).bit_length()


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a last stride of 1, which the kernels take for granted."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _beside(query: torch.Tensor, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor on the query's device: layers of one forward may be on several devices, and its plan is on one."""
    return None if tensor is None else _dense(tensor.to(query.device))
