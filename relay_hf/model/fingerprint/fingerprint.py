"""Whether a model still computes what it computed when a prefix was prefilled.

Fused optimizers, writes through `.data` and a LoRA merge change weights without moving `_version` or `data_ptr`. So a
fingerprint holds, for every parameter, its identity, version, address, dtype and gradient, *and* 32 of its elements,
spread evenly. It holds the same for every buffer, and for every tensor that a module has in another attribute. It also
holds the settings and the code that a forward reads (`module_state.py`).

It does not notice three changes: a write through `.data` that misses all 32 elements, such as one to a single row of a
matrix; a change inside an object that is no container; and a function that is replaced in a file of code. After such a
change call `model.relay.clear()`. Each row of the embedding that a kept prefix uses is sampled (`embedding.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from .module_state import PlaceInModel, attributes, module_state
from .samples import samples

_VERSION, _DTYPE = attrgetter("_version"), attrgetter("dtype")


class ModelFingerprint:
    """A model's state at one moment, to be compared with a later one.

    Args:
        modules: all modules of the model. The fingerprint holds no reference to them.
        ignore: buffers, and attributes that are no plain settings, which are not compared, because the model's own
            forward rewrites them.
    """

    def __init__(self, modules: Sequence[nn.Module], ignore: frozenset[PlaceInModel] = frozenset()) -> None:
        self.ignore = ignore
        # Comprehensions are used for speed: for 1,000 parameters in 1,400 modules, model.parameters() and similar
        # methods take longer than all the rest of this.
        parameters = [p for module in modules for p in module._parameters.values() if p is not None]
        settings, others = attributes(modules)
        for index, module in enumerate(modules):
            if module._buffers:
                others |= {(index, name): (None, [b]) for name, b in module._buffers.items() if b is not None}
        others = {place: held for place, held in others.items() if place not in ignore}
        self._marks = _marks(parameters)
        self._samples, of_others = samples(parameters, [tensor for _, inside in others.values() for tensor in inside])
        seen = iter(of_others)
        self._held = {
            place: (what, [(_marks([tensor]), next(seen)) for tensor in inside])
            for place, (what, inside) in others.items()
        }
        self._state = settings + module_state(modules)

    def holds(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the model of `modules` is as it was."""
        return self.same(ModelFingerprint(modules, self.ignore))

    def same(self, other: ModelFingerprint) -> bool:
        """Whether two fingerprints that ignore the same places saw the same state."""
        return (
            self._marks == other._marks
            and self._state == other._state
            and self._samples == other._samples
            and self._held == other._held
        )

    def rewritten(self, later: ModelFingerprint) -> frozenset[PlaceInModel]:
        """The places that differ in `later`, and those that only one of the two has."""
        places = self._held.keys() | later._held.keys()
        return frozenset(place for place in places if self._held.get(place) != later._held.get(place))

    def without(self, places: frozenset[PlaceInModel]) -> ModelFingerprint:
        """The same fingerprint, which also ignores `places`."""
        new = copy.copy(self)
        new.ignore = self.ignore | places
        new._held = {place: seen for place, seen in self._held.items() if place not in places}
        return new


def _marks(tensors: Sequence[Tensor]) -> list[Any]:
    """Identities, versions, addresses, dtypes and gradients, flat: a tuple for each would start garbage collection."""
    try:
        versions = [*map(_VERSION, tensors)]
    except RuntimeError:  # a tensor made in inference mode has no version
        versions = [0 if t.is_inference() else t._version for t in tensors]
    gradients = [id(t.grad) if t.is_leaf else 0 for t in tensors]
    return [*map(id, tensors), *versions, *map(Tensor.data_ptr, tensors), *map(_DTYPE, tensors), *gradients]
