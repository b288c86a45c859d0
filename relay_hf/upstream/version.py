"""Which Transformers is installed, and which ones relay_hf knows."""

from __future__ import annotations

from transformers import __version__

INSTALLED: str = __version__

# The minor version of Transformers 5: a fact that differs between versions is told by it.
MINOR = int(INSTALLED.split(".")[1])

_OLDEST, _BELOW = (5, 17), (6, 0)
SUPPORTED = f">={_OLDEST[0]}.{_OLDEST[1]},<{_BELOW[0]}"


def is_supported(version: str = INSTALLED) -> bool:
    """Whether a version of Transformers is in the range that relay_hf supports."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return _OLDEST <= (major, minor) < _BELOW
