"""A run that is repeated on the CPU as a CUDA graph is on a GPU: on the same memory, with the numbers of its capture.

Operations are noted as PyTorch dispatches them, and the relay's attention as it is called: what it knows of segments it
reads, each time, from where its tables say they lie. A capture computes nothing: what a run wrote to memory that was
there before is put back.
"""

from __future__ import annotations

import ctypes
import threading

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from relay_hf.kernels import reference
from relay_hf.kernels.segment import Segment

_recording = threading.local()  # the graph that is captured, if any
_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")


class CpuGraph:
    def __init__(self):
        self._calls = []
        self._saved = {}
        self.replays = 0

    def capture(self, run):
        _recording.graph = self
        try:
            with Noted(self):
                return run()
        finally:
            del _recording.graph
            for tensor, before in self._saved.values():
                tensor.copy_(before)

    def replay(self):
        self.replays += 1
        for call in self._calls:
            call()

    replay_beside = replay

    def join(self):
        pass

    def note(self, call):
        self._calls.append(call)

    def save(self, tensor):
        storage = tensor.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._saved.setdefault(storage.data_ptr(), (whole, whole.clone()))


class Noted(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation.name() in _WAITS:
            raise RuntimeError(f"{operation.name()}: a capture can't wait for the device")
        asked = operation._schema.arguments
        written = [i for i, argument in enumerate(asked) if argument.alias_info and argument.alias_info.is_write]
        for i in written:
            given = args[i] if i < len(args) else kwargs.get(asked[i].name)
            for tensor in given if isinstance(given, list | tuple) else [given]:
                self.graph.save(tensor)
        outputs = operation(*args, **kwargs)
        if written:
            self.graph.note(lambda: operation(*args, **kwargs))
        kept = outputs if isinstance(outputs, tuple | list) else (outputs,)
        there = {
            t.untyped_storage().data_ptr() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        views = all(t.untyped_storage().data_ptr() in there for t in kept if isinstance(t, torch.Tensor))
        if not written and not views and "empty" not in operation.name():

            def again():
                new = operation(*args, **kwargs)
                for old, other in zip(kept, new if isinstance(new, tuple | list) else (new,), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(other)

            self.graph.note(again)
        return outputs


def attend_by_tables(plan, query, key, value, **how):
    """Relay attention whose segments are read from the tables of `plan`; a graph that is captured repeats it."""
    how.pop("backend")
    kv_heads = key.shape[1]
    plan.tables.work(kv_heads, query.shape[1] // kv_heads, TILE)
    out = query.new_empty(query.shape[0], 1, query.shape[1], value.shape[3])

    def attend():
        segments = read_segments(plan.tables, key, value, query.shape[1] // kv_heads)
        where = {"own_start": plan.own_start, "own_length": plan.own_length, "own_mask": plan.own_mask}
        scale = how["scale"] or query.shape[3] ** -0.5
        out.copy_(reference.relay_attention(query, segments, key, value, **where, **{**how, "scale": scale}))

    with _disable_current_modes():
        attend()
    if hasattr(_recording, "graph"):
        _recording.graph.note(attend)
    return out


def read_segments(tables, key, value, queries):
    (work,) = tables._works.values()
    addresses, found = tables.addresses(key), {}
    for segment, first, end, first_use, _, stop, _, start in work.items.tolist():
        if end > first:
            rows = tuple(row for row, _ in work.uses[first_use : first_use + end // queries].tolist())
            found[segment] = (max(stop, found[segment][0] if segment in found else 0), start, rows)
    segments = []
    for index, (length, start, rows) in sorted(found.items()):
        numbers = addresses[index].tolist()
        parts = [_read(base, length, *numbers[i : i + 3]) for base, i in ((key, 0), (value, 3))]
        segments.append(Segment(*parts, start, rows))
    return segments


def _read(base, length, offset, head_stride, token_stride):
    size, heads, width = base.element_size(), base.shape[1], base.shape[3]
    count = (heads - 1) * head_stride + (length - 1) * token_stride + width
    memory = (ctypes.c_byte * (count * size)).from_address(base.data_ptr() + offset * size)
    flat = torch.frombuffer(memory, dtype=base.dtype)
    return flat.as_strided((heads, length, width), (head_stride, token_stride, 1))


def tile():
    from relay_hf.kernels.triton.tuning import INTERPRETER, choose

    return choose("decode", INTERPRETER, 64, 4, 16)


TILE = tile()
