"""A model's state at one moment, in a form that a later one can be compared with."""

from .embedding import embedding_samples
from .fingerprint import ModelFingerprint
from .keeping import keeping_refusal
from .module_state import PlaceInModel, adapter_state, all_modules, structure

__all__ = [
    "ModelFingerprint",
    "PlaceInModel",
    "adapter_state",
    "all_modules",
    "embedding_samples",
    "keeping_refusal",
    "structure",
]
