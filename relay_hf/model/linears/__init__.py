"""Linear layers of relayed forwards on a CPU, by oneDNN's operator where that is faster than PyTorch's own choice.

In float32 PyTorch multiplies by MKL, which on AMD processors takes twice the time of oneDNN. oneDNN is in PyTorch too,
and reads the same plain weights: no copy is made, so nothing can go stale. Only the forward of a relayed call is
switched, in the thread that runs it. `docs/decoding.md` has its rounding.
"""

from .choice import choose
from .chosen import Linears
from .selection import deselect, select

__all__ = ["Linears", "choose", "deselect", "select"]
