"""Which code inside a model is known to act token by token: it is recognised, because anything else may do otherwise.

A relayed call puts a prefix through the model apart from the rows. That changes nothing for code that treats each token
by itself. Code that looks at several tokens, or at the whole batch, would see other ones than in stock's call.
"""

from .hooks import unknown_hook
from .origins import is_known_function
from .pytorch import mode_around, replaced_operator
from .quantizers import dependent_layers, is_quantized
from .registered import unknown_attention
from .unknown import Trust, Unknown, unknown_class, unknown_code

__all__ = [
    "Trust",
    "Unknown",
    "dependent_layers",
    "is_known_function",
    "is_quantized",
    "mode_around",
    "replaced_operator",
    "unknown_attention",
    "unknown_class",
    "unknown_code",
    "unknown_hook",
]
