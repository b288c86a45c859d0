"""What torch.compile is not to look into: it reads what it can't follow, and runs once for each forward.

Imported by what it compiles, and by nothing else: it loads PyTorch's compiler, which takes seconds.
"""

from __future__ import annotations

import torch

from ..cache_utils import RelayCache
from . import hooks
from .masks import relay_mask

enter = torch.compiler.disable(hooks.enter)
leave = torch.compiler.disable(hooks.leave)
store = torch.compiler.disable(RelayCache.store)
mask = torch.compiler.disable(relay_mask)
