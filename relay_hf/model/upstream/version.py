"""Which Transformers is installed, and which ones relay_hf knows."""

from __future__ import annotations

from transformers import __version__

from .. import tested

INSTALLED: str = __version__

# The minor version of Transformers 5, by which facts that differ between versions are chosen.
MINOR = int(INSTALLED.split(".")[1])

_OLDEST, _BELOW = (5, 17), (6, 0)
SUPPORTED = f">={_OLDEST[0]}.{_OLDEST[1]},<{_BELOW[0]}"


def is_supported(version: str = INSTALLED) -> bool:
    """Whether a version of Transformers is in the range that relay_hf supports."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return _OLDEST <= (major, minor) < _BELOW


def refusal_of(difference: str) -> str:
    """A changed fact, with what is installed, what is supported, and what to do."""
    tried = ", ".join(tested.TRANSFORMERS)
    return (
        f"this Transformers is not what relay_hf hooks into: {difference}. Installed is {INSTALLED}; relay_hf supports "
        f"{SUPPORTED} and was tested with {tried}. Install one of these, or a relay_hf that knows {INSTALLED}; the "
        "model is as it was, and generates without relay_hf."
    )


def refusal_of_import(error: BaseException) -> str | None:
    """The same for an import from within Transformers that fails; None for other errors."""
    if isinstance(error, ImportError):
        where = error.name
    else:
        where = getattr(getattr(error, "obj", None), "__name__", None)
    if not str(where or "").startswith("transformers"):
        return None
    return refusal_of(f"what {where} has: {error}")
