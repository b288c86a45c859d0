"""Operations on a SplitTensor, by PyTorch's name of the function. NotImplemented: the whole tensor is used instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .tensor import OPERATIONS, SplitTensor

_HALF = (torch.float16, torch.bfloat16)


def _matmul(func: Callable, a: Any, b: Any) -> Any:
    if isinstance(b, SplitTensor) and b.axis == b.dim() - 1 and not isinstance(a, SplitTensor):
        if a.dim() != b.dim() or a.shape[0] != b.shape[0]:
            return NotImplemented
        return b.like(_times_shared(a, b), torch.matmul(a, b.own), padded=False)
    if not (isinstance(a, SplitTensor) and isinstance(b, SplitTensor)):
        return NotImplemented
    if a.axis != a.dim() - 1 or b.axis != b.dim() - 2 or a.shape[0] != b.shape[0]:
        return NotImplemented
    return _times_shared(a.shared, b) + torch.matmul(a.own, b.own)


def _times_shared(a: Tensor, b: SplitTensor) -> Tensor:
    """`a [rows * n, ..., T, K]` times the shared part of b: of all rows as one matrix, if they share that part."""
    if not b.same_for_all:
        return torch.matmul(a, b.shared)
    rows, queries = b.columns.rows, a.shape[-2]
    stacked = a.unflatten(0, (rows, -1)).movedim(0, -3).flatten(-3, -2)
    product = torch.matmul(stacked, b.shared)
    return product.unflatten(-2, (rows, queries)).movedim(-3, 0).flatten(0, 1)


def _baddbmm(func: Callable, bias: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    scores = _matmul(func, batch1, batch2)
    if scores is NotImplemented or isinstance(bias, SplitTensor):
        return NotImplemented
    if not isinstance(scores, SplitTensor):
        return beta * bias + alpha * scores
    return _elementwise(torch.add, _elementwise(torch.mul, scores, alpha), beta * bias)


def _elementwise(func: Callable, *args: Any, **kwargs: Any) -> Any:
    first = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, SplitTensor))
    width, axis = first.shape[first.axis], first.axis - first.dim()

    def parts(arg: Any) -> tuple[Any, Any]:
        if isinstance(arg, SplitTensor):
            return arg.shared, arg.own
        if isinstance(arg, Tensor) and arg.dim() >= -axis and arg.shape[axis] == width:
            return first.columns.split(arg, axis, first.dim(), first.own.shape[0])
        return arg, arg

    values = [parts(arg) for arg in args]
    named = {name: parts(arg) for name, arg in kwargs.items()}
    shared, own = (func(*[v[i] for v in values], **{n: v[i] for n, v in named.items()}) for i in (0, 1))
    padded = first.padded and getattr(func, "__name__", "") in _ZERO_STAYS
    return first.like(shared, own, padded=padded)


def _in_place(func: Callable, target: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(target, SplitTensor):
        return NotImplemented
    out = _elementwise(getattr(torch, func.__name__.rstrip("_")), target, *args, **kwargs)
    target.shared, target.own, target.padded = out.shared, out.own, out.padded
    return target


def _softmax(func: Callable, scores: Any, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Any:
    if dim % scores.dim() != scores.axis or scores.axis != scores.dim() - 1:
        return NotImplemented
    result = scores.own.dtype if dtype is None else dtype
    # In 16 bits PyTorch sums in float32 too, and rounds once.
    inside = torch.float32 if result in _HALF else result
    shared, own = scores.shared.to(inside), scores.columns.hide_foreign(scores.own.to(inside))
    most = torch.maximum(shared.amax(-1, keepdim=True), own.amax(-1, keepdim=True))
    if scores.columns.own_start is not None:
        # A row of padding may see nothing, and must stay finite: it is later multiplied by zero, and added.
        most = most.clamp(min=torch.finfo(inside).min)
    shared, own = (shared - most).exp(), (own - most).exp()
    total = shared.sum(-1, keepdim=True) + own.sum(-1, keepdim=True)
    if scores.columns.own_start is not None:
        total = total.masked_fill(total == 0, 1)
    return scores.like((shared / total).to(result), (own / total).to(result), padded=True)


def _attention(
    func: Callable,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **how: Any,
) -> Any:
    split = isinstance(key, SplitTensor) and isinstance(value, SplitTensor)
    # In 16 bits the fused function rounds less than these steps would.
    if not split or is_causal or dropout_p or query.dtype in _HALF or query.dim() != 4:
        return NotImplemented
    heads, groups = query.shape[1], key.shape[1]
    if heads != groups and groups > 1 and not how.get("enable_gqa"):
        return NotImplemented
    given = how.get("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if given is None else given
    length = query.shape[2]
    packed = query.reshape(query.shape[0], groups, heads // groups * length, -1)
    scores = _matmul(func, packed * scale, _transpose(func, key, -1, -2))
    if scores is NotImplemented:
        return NotImplemented
    if attn_mask is not None:
        scores = _view(func, scores, query.shape[0], heads, length, scores.shape[-1])
        least = torch.finfo(query.dtype).min  # not -inf: a row of padding sees nothing, and must stay finite
        if attn_mask.dtype == torch.bool:
            scores = _elementwise(torch.where, attn_mask, scores, least)
        else:
            scores = _elementwise(torch.add, scores, attn_mask)
        scores = _view(func, scores, query.shape[0], groups, heads // groups * length, scores.shape[-1])
    return _matmul(func, _softmax(func, scores), value).reshape(*query.shape[:3], -1)


def _view(func: Callable, tensor: Any, *sizes: Any) -> Any:
    """Views that keep the columns as one axis, and the rows outermost."""
    old = list(tensor.shape)
    new = _spread(sizes)
    if not all(isinstance(size, int) for size in new):
        return NotImplemented
    if -1 in new:
        new[new.index(-1)] = math.prod(old) // -math.prod(new)
    before = math.prod(old[: tensor.axis])
    axis = next((i for i, size in enumerate(new) if size == old[tensor.axis] and math.prod(new[:i]) == before), None)
    rows = tensor.columns.rows
    if axis is None or axis == 0 or new[0] % rows:
        return NotImplemented
    new[axis] = tensor.own.shape[tensor.axis]
    own = tensor.own.reshape(new)
    new[axis] = tensor.shared.shape[tensor.axis]
    new[0] = new[0] // rows if tensor.same_for_all else new[0]
    return tensor.like(tensor.shared.reshape(new), own, axis)


def _spread(sizes: tuple[Any, ...]) -> list[Any]:
    """Arguments that PyTorch takes one by one or as one sequence."""
    return list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes)


def _flatten(func: Callable, tensor: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    shape, end = list(tensor.shape), end_dim % tensor.dim()
    return _view(func, tensor, *shape[:start_dim], math.prod(shape[start_dim : end + 1]), *shape[end + 1 :])


def _permute(func: Callable, tensor: Any, *order: Any) -> Any:
    places = [place % tensor.dim() for place in _spread(order)]
    if places[0] != 0:
        return NotImplemented
    return tensor.like(tensor.shared.permute(places), tensor.own.permute(places), places.index(tensor.axis))


def _transpose(func: Callable, tensor: Any, dim0: int, dim1: int) -> Any:
    order = list(range(tensor.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(func, tensor, order)


def _expand(func: Callable, tensor: Any, *sizes: Any) -> Any:
    new = _spread(sizes)
    if len(new) != tensor.dim() or new[0] not in (-1, tensor.shape[0]):
        return NotImplemented
    kept = [-1 if i in (0, tensor.axis) else size for i, size in enumerate(new)]
    return tensor.like(tensor.shared.expand(kept), tensor.own.expand(kept))


def _cat(func: Callable, tensors: Any, dim: int = 0) -> Any:
    """Appends columns behind the last one, for attention sinks."""
    first, *more = tensors
    split = [isinstance(tensor, SplitTensor) for tensor in tensors]
    if split != [True] + [False] * len(more) or dim % first.dim() != first.axis:
        return NotImplemented
    return first.like(first.shared, torch.cat([first.own, *more], dim))


def _getitem(func: Callable, tensor: Any, index: Any) -> Any:
    """Adds axes behind the first one, or cuts columns off the end; nothing else."""
    index = index if isinstance(index, tuple) else (index,)
    if not isinstance(tensor, SplitTensor):
        return NotImplemented
    last = index[-1]
    if len(index) == 2 and index[0] is Ellipsis and isinstance(last, slice) and tensor.axis == tensor.dim() - 1:
        begin, end, step = last.indices(tensor.shape[-1])
        kept = begin == 0 and step == 1 and end >= tensor.columns.offset
        return tensor.like(tensor.shared, tensor.own[..., : end - tensor.columns.offset]) if kept else NotImplemented
    if index[:1] != (slice(None),):
        return NotImplemented
    if any(part is not None and part != slice(None) for part in index):
        return NotImplemented
    axis = [i for i, part in enumerate(index) if part is not None]
    if len(axis) <= tensor.axis:
        return NotImplemented
    return tensor.like(tensor.shared[index], tensor.own[index], axis[tensor.axis])


def _chunk(func: Callable, tensor: Any, chunks: int, dim: int = 0) -> Any:
    if dim % tensor.dim() in (0, tensor.axis):
        return NotImplemented
    pairs = zip(tensor.shared.chunk(chunks, dim), tensor.own.chunk(chunks, dim), strict=True)
    return tuple(tensor.like(*pair) for pair in pairs)


def _repeat(func: Callable, tensor: Any, *sizes: Any) -> Any:
    new = _spread(sizes)
    if len(new) != tensor.dim() or new[0] != 1 or new[tensor.axis] != 1:
        return NotImplemented
    return tensor.like(tensor.shared.repeat(new), tensor.own.repeat(new))


def _dropout(func: Callable, tensor: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training and p else tensor


def _same(func: Callable, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    return tensor


def _cast(func: Callable, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(tensor, SplitTensor):
        return NotImplemented
    return tensor.like(func(tensor.shared, *args, **kwargs), func(tensor.own, *args, **kwargs))


def _largest(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """The larger of two tensors. The reduction of the same name is not implemented."""
    two = len(args) == 2 and all(isinstance(arg, Tensor) for arg in args) and not kwargs
    return _elementwise(torch.maximum if func.__name__ == "max" else torch.minimum, *args) if two else NotImplemented


_ZERO_STAYS = frozenset({"mul", "div", "true_divide"})
_ELEMENTWISE = ("add", "sub", "mul", "div", "true_divide", "where", "masked_fill", "maximum", "minimum")

OPERATIONS |= {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys([f"{name}_" for name in _ELEMENTWISE if name != "where"], _in_place),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("float", "to", "type", "double", "half", "bfloat16"), _cast),
    **dict.fromkeys(("max", "min"), _largest),
    "__getitem__": _getitem,
    "baddbmm": _baddbmm,
    "cat": _cat,
    "chunk": _chunk,
    "contiguous": _same,
    "dropout": _dropout,
    "expand": _expand,
    "flatten": _flatten,
    "permute": _permute,
    "scaled_dot_product_attention": _attention,
    "repeat": _repeat,
    "softmax": _softmax,
    "transpose": _transpose,
}
