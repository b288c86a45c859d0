"""The state of a model at one moment, to be compared with a later one: it shows whether kept prefixes are stale."""

from .embedding import embedding_samples
from .fingerprint import ModelFingerprint
from .keeping import keeping_refusal
from .module_state import PlaceInModel, adapter_state, make_up, structure
from .samples import tensor_samples

__all__ = [
    "ModelFingerprint",
    "PlaceInModel",
    "adapter_state",
    "embedding_samples",
    "keeping_refusal",
    "make_up",
    "structure",
    "tensor_samples",
]
