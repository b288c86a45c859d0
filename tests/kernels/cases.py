"""Random inputs of the operator, in the shapes that every path is tried in."""

import copy

import torch
import torch.nn.functional as F

from relay_hf.kernels import reference
from relay_hf.kernels.segment import Segment
from relay_hf.ops import relay_attention

CAPACITY = 9  # columns that a buffer has beyond those in use


class Case:
    """Random inputs in the strides of a model: query a transposed view, key and value views of longer buffers."""

    def __init__(self, B=2, H=2, G=1, D=16, Dv=None, P=(20,), S=7, T=1, rows=(), dtype=torch.float64, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        Dv = Dv or D
        self.query = self.randn(B, T, H * G, D, dtype=dtype).transpose(1, 2)
        self.key = self.randn(B, H, S + CAPACITY, D, dtype=dtype)
        self.value = self.randn(B, H, S + CAPACITY, Dv, dtype=dtype)
        for buffer in (self.key, self.value):
            buffer[:, :, S:] = float("nan")
        self.key, self.value = self.key[:, :, :S], self.value[:, :, :S]
        self.segments, start = [], 0
        for i, length in enumerate(P):
            used_by = tuple(rows[i]) if i < len(rows) and rows[i] is not None else None
            k, v = self.randn(H, length, D, dtype=dtype), self.randn(H, length, Dv, dtype=dtype)
            self.segments.append(Segment(k, v, start, used_by))
            start += length

    def randn(self, *shape, dtype):
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator).to(dtype)

    def slopes(self):
        """ALiBi's slopes in a random order, the last one of the other sign."""
        heads = self.query.shape[1]
        slopes = 2.0 ** -(8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
        slopes[-1] *= -1
        return slopes[torch.randperm(heads, generator=self.generator)]

    def run(self, **options):
        return relay_attention(self.query, self.segments, self.key, self.value, **options)

    def exact(self, **options):
        """The reference on the same numbers, in float64."""
        segments = [Segment(s.key.double(), s.value.double(), s.start, s.rows) for s in self.segments]
        for name in ("sinks", "alibi_slopes"):
            if options.get(name) is not None:
                options[name] = options[name].double()
        return reference.relay_attention(
            self.query.double(), segments, self.key.double(), self.value.double(), **options
        )

    def real(self, own_start, own_length=None):
        """True where a query is not in a padding column, ``[B, T, 1, 1]``."""
        length = self.query.shape[2]
        stop = torch.tensor([self.key.shape[2]]) if own_length is None else own_length
        columns = stop[:, None] - length + torch.arange(length)
        return (columns >= own_start[:, None])[:, :, None, None]

    def poisoned(self, own_length):
        """The same case with NaN in the columns that are not read, as a buffer has them."""
        unread = (torch.arange(self.key.shape[2]) >= own_length[:, None])[:, None, :, None]
        case = copy.copy(self)
        for name in ("key", "value"):
            filled = getattr(self, name).masked_fill(unread, float("nan"))
            setattr(case, name, F.pad(filled, (0, 0, 0, CAPACITY), value=float("nan"))[:, :, : filled.shape[2]])
        return case

    def check(self, **options):
        own_length = options.get("own_length")
        case = self if own_length is None else self.poisoned(own_length)
        out, exact = case.run(**options), self.exact(**options)
        assert out.shape == exact.shape
        assert out.isfinite().all()
        if options.get("own_start") is not None:
            real = self.real(options["own_start"], own_length)
            out, exact = out * real, exact * real
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)


SHAPES = [
    {"P": ()},
    {"P": (0,), "T": 3},
    {"P": (), "T": 7},
    {"P": (1,), "S": 1, "B": 1},
    {"P": (63,), "S": 7, "G": 3, "B": 5},
    {"P": (1025,), "S": 33, "G": 7, "H": 1, "D": 100},
    {"P": (111,), "S": 7, "T": 5, "G": 8, "H": 1, "D": 80},
    {"P": (63,), "S": 45, "T": 45, "G": 3, "B": 5},
    {"P": (1025,), "S": 40, "T": 33, "G": 3, "D": 64},
    {"P": (111,), "S": 7, "D": 24, "Dv": 16, "G": 3, "T": 2},
    {"P": (63,), "S": 33, "D": 192, "Dv": 128},
    {"P": (63,), "S": 140, "T": 130, "G": 3, "H": 1, "D": 24, "Dv": 16},
    {"P": (9,), "S": 3, "D": 16, "Dv": 24},
    {"P": (20, 9, 4), "B": 5, "rows": (None, (0, 2, 3), (4, 1)), "G": 2},
    {"P": (9, 20, 0), "B": 5, "T": 4, "rows": ((4, 0), (), (1,)), "G": 2},
]
WINDOWS = [None, 1, 3, 8, 30, 5000]
