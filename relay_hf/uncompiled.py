"""What torch.compile is not to look into: it reads what it can't follow, and runs once for each forward.

Imported by what it compiles, and by nothing else: it loads PyTorch's compiler, which takes seconds.
"""

from __future__ import annotations

import torch

from .cache_utils import RelayCache
from .masks import relay_mask
from .relay import Relay

enter = torch.compiler.disable(Relay.enter)
leave = torch.compiler.disable(Relay.leave)
store = torch.compiler.disable(RelayCache.store)
mask = torch.compiler.disable(relay_mask)
