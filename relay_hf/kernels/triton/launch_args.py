"""One attention call as the kernels take it: where its tensors lie, and which of the operator's features it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from ..arguments import ScoreOptions
from ..plan import Plan
from ..segment import Segment
from .device_tables import Kept, to_device
from .graph_tables import DecodeTables
from .softmax import attend_range
from .tuning import overlaps

_VECTOR = 16  # bytes of the widest load
_WIDEST = 2**30  # tokens of a window: more than any position, and sums with positions stay in int32

# Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1 turns every kernel into something else than compiled.
INTERPRETED = not isinstance(attend_range, triton.JITFunction)

_MOST_TABLES = 4096  # of 48 bytes a segment: with several segments each layer may have its own

_tables: Kept[torch.Tensor] = Kept(_MOST_TABLES)

# The names of `Call.numbers`. Unspecialized, one compiled variant serves all their values; what is known of their
# alignment is said by ALIGNMENT.
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


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `ops.relay_attention`, laid out.

    Attributes:
        query, key, value: as given, with a last stride of 1.
        segments: those with tokens and rows.
        segment_keys, segment_values: of the segments, with a last stride of 1; of none, the own ones in their place.
        addresses: `[segments, 6]` int64, in elements from the first segment: offset, head stride and token stride of
            keys, then of values. Segments that lie in one tensor have the same in every layer.
        tables: what says so in their place, and who does what, for a step that is captured: from the own tensors; or
            None.
        alignment: a number of elements that every offset and stride is a multiple of: 16 bytes of them, or 1.
        columns: own columns, whether they hold anything or not.
        own_start, own_length, own_mask: the plan's, where the query lies, with a last stride of 1.
        scale, sliding_window, softcap, sinks, alibi_slopes: as given.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    segments: Sequence[Segment]
    segment_keys: list[torch.Tensor]
    segment_values: list[torch.Tensor]
    addresses: torch.Tensor
    tables: DecodeTables | None
    alignment: int
    columns: int
    own_start: torch.Tensor | None
    own_length: torch.Tensor | None
    own_mask: torch.Tensor | None
    scale: float
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    alibi_slopes: torch.Tensor | None

    @classmethod
    def of(
        cls,
        plan: Plan,
        query: torch.Tensor,
        segments: Sequence[Segment],
        key: torch.Tensor,
        value: torch.Tensor,
        options: ScoreOptions,
    ) -> Call:
        """Look up where everything lies."""
        segments = [segment for segment in segments if segment.length and segment.rows != ()]
        query, key, value = _dense(query), _dense(key), _dense(value)
        size = query.element_size()
        numbers: list[int] = []
        tables = plan.tables
        if tables is not None and not isinstance(tables, DecodeTables):
            raise TypeError(f"plan.tables must be DecodeTables for the Triton kernels; got {type(tables).__name__}")
        if tables is None:
            keys = [_dense(segment.key) for segment in segments] or [key[0]]
            values = [_dense(segment.value) for segment in segments] or [value[0]]
            for segment_key, segment_value in zip(keys, values, strict=True):
                for tensor, base in ((segment_key, keys[0]), (segment_value, values[0])):
                    numbers += [(tensor.data_ptr() - base.data_ptr()) // size, tensor.stride(0), tensor.stride(1)]
            addresses = _tables.get(tuple(numbers), query.device, lambda: to_device(numbers, query.device, torch.int64))
        else:
            keys, values, addresses = [key], [value], tables.addresses(key)

        vector = _VECTOR // size
        steps = [*numbers, *query.stride()[:3], *key.stride()[:3], *value.stride()[:3]]
        starts = [tensor.data_ptr() for tensor in (query, key, value, keys[0], values[0])]
        aligned = not any(step % vector for step in steps) and not any(start % _VECTOR for start in starts)
        aligned = aligned and (tables is None or tables.aligned)
        return cls(
            query=query,
            key=key,
            value=value,
            segments=segments,
            segment_keys=keys,
            segment_values=values,
            addresses=addresses,
            tables=tables,
            alignment=vector if aligned else 1,
            columns=plan.columns,
            own_start=_beside(query, plan.own_start),
            own_length=_beside(query, plan.own_length),
            own_mask=_beside(query, plan.own_mask),
            scale=options.scale,
            sliding_window=options.sliding_window,
            softcap=options.softcap,
            sinks=_beside(query, options.sinks),
            alibi_slopes=_beside(query, options.alibi_slopes),
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
            0 if self.own_mask is None else self.own_mask.stride(0),
            self.scale,
            1.0 if self.softcap is None else self.softcap,
            0 if self.sliding_window is None else min(self.sliding_window, _WIDEST),
            self.query.shape[2],
            self.columns,
        )

    @property
    def overlapping(self) -> dict[str, object]:
        """Launch options of a launch that may begin before the one before it has ended, and waits for that itself."""
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
            "WINDOW": self.sliding_window is not None,
            "SOFTCAP": self.softcap is not None,
            "ALIBI": self.alibi_slopes is not None,
            "OWN_START": self.own_start is not None,
            "OWN_LENGTH": self.own_length is not None,
            "HOLES": self.own_mask is not None,
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
    """The tensor where the query lies: the layers of one forward may stand on several devices, its plan on one."""
    return None if tensor is None else _dense(tensor.to(query.device))
