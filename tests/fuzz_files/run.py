"""Running a case: the file is loaded twice, copied and mapped, and what comes of it is judged."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from relay_hf import PrefixFileError, RelayError

from .case import Case, draw
from .subjects import Subject, kept, subject
from .watch import watched

_SECONDS = 30  # a load takes milliseconds; this is a hang


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        kind: "refused", "same" (it loaded as what was saved), "as forged" (it loaded as what its sums are of), or
            "finding".
        detail: the error, or what is wrong.
    """

    case: Case
    kind: str
    detail: str = ""


class Finding(Exception):
    """What must not be."""


def run(number: int) -> Outcome:
    """Draw a case and run it."""
    case = draw(number)
    it = subject(case.model_type)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prefixes.safetensors"
            case.write(path, it.data)
            copied, mapped = (_load(it, case, path, mmap) for mmap in (False, True))
        if copied[0] != mapped[0]:  # which of several errors is met first is safetensors' to say
            raise Finding(f"copied it is {copied}, and mapped {mapped}")
        return Outcome(case, *copied)
    except Finding as finding:
        return Outcome(case, "finding", str(finding))


def _load(it: Subject, case: Case, path: Path, mmap: bool) -> tuple[str, str]:
    before = it.reset(case.bystander)
    try:
        with watched(path, _SECONDS):
            loaded = it.model.relay.load(path, mmap=mmap)
    except (PrefixFileError, RelayError, OSError) as error:
        return _refused(it, case, path, error, before)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and what safetensors panics with among them
        raise Finding(f"{type(error).__name__}: {error}") from error
    after = kept(it.model)
    if {tuple(each.ids.tolist()) for each in loaded} | before.keys() != after.keys():
        raise Finding("what was returned is not what is kept")
    if after == it.content | before:
        if not torch.equal(it.generated(), it.expected):
            raise Finding("other tokens than stock's")
        if it.model.relay.last.prefix_tokens_reused != it.reused:
            raise Finding("it was loaded, and is not used")
        return "same", ""
    if not case.forged:
        raise Finding("it loaded as something else than what was saved")
    it.generated()
    return "as forged", ""


def _refused(it: Subject, case: Case, path: Path, error: Exception, before: object) -> tuple[str, str]:
    message = str(error)
    if isinstance(error, OSError) and not any(kind.startswith("elsewhere.") for kind in case.kinds):
        raise Finding(f"{type(error).__name__} of a file that can be read: {message}")
    if path.name not in message:
        raise Finding(f"the error does not name the file: {message}")
    if not message.isprintable() or len(message) > 1000:
        raise Finding(f"the error is not a line that can be read: {message[:200]!r}")
    if kept(it.model) != before:
        raise Finding(f"it was refused, and the store has changed: {message}")
    if case.number % 8 == 0 and not torch.equal(it.generated(), it.expected):
        raise Finding("it was refused, and the model gives other tokens than stock's")
    return "refused", f"{type(error).__name__}: {message.replace(str(path), 'PATH')}"
