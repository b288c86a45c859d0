"""The model that some kept prefixes belong to, as it was: what a call compares with the model as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..model.fingerprint import ModelFingerprint


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of the model when some kept prefixes were made.

    Attributes:
        fingerprint: the fingerprint of the model.
        samples: the tokens of each prefix, `[n]`, and samples of their embedding, `[n, e]`. The prefix itself is not
            held, because it may be divided at any time.
    """

    fingerprint: ModelFingerprint
    samples: tuple[tuple[Tensor, Tensor], ...]
