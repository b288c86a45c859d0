"""Files of kept prefixes: safetensors, with one JSON record that describes the tensors.

    <number>.ids                          [n] int64: the tokens behind those of the prefix that it extends
    <number>.layers.<layer>.key           [Hkv, n, D]
    <number>.layers.<layer>.value         [Hkv, n, Dv]
    <number>.layers.<layer>.stored.0, .1  K and V as the model's cache stores them, if attention sees something else
    <number>.layers.<layer>.conv.<i>, .recurrent.<i>  [1, ...], after the last token

The record is in the header's metadata, beside its own SHA-256. It has the SHA-256 of every tensor. Nothing in a file is
executed or unpickled, and everything in it is checked against the model that reads it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..cache_utils import PrefixKV
from ..errors import PrefixFileError, on_a_line, printable, shown
from ..model.digests import digest_of, in_threads
from .entry import PrefixEntry
from .file_reader import TensorFile, header_of, parsed
from .file_replace import replacing
from .file_tensors import named_tensors, rebuilt, shapes, without_states

FORMAT = 1
_ADVICE = "Give a file that was saved of this model, or warm the prefixes again and save them."
_RECORD, _DIGEST = "relay_hf", "relay_hf.sha256"


def is_there(path: Path) -> bool:
    """Whether a file lies at a path; False where nothing does.

    Raises:
        OSError: something else than a file is there, or the path can't be read.
        ValueError: no path can have such a name.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError as error:
        raise ValueError(f"path must be that of a file; {printable(path)} can't be one ({error}).") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        what = "a link that leads in a circle; remove it, or give the path of the file itself"
        raise OSError(errno.ELOOP, what, str(path)) from None
    if not S_ISREG(mode):
        kind, found = (IsADirectoryError, "is a folder") if S_ISDIR(mode) else (OSError, "is neither file nor folder")
        raise kind(f"path must be that of a file; {printable(path)} is none: it {found}. Give the path of the file.")
    return True


def write(path: Path, identity: Mapping[str, Any], prefixes: Sequence[PrefixEntry]) -> None:
    """Write prefixes, each after the one that it extends, and the identity of their model.

    An old file is replaced at once and as a whole, so that a reader sees either the old or the new one; its permissions
    stay. Tensors on a device, and views, are copied to the host.

    Raises:
        OSError: the file could not be written; an old file is unchanged.
        PrefixFileError: no reader would take the file: the description of its tensors is far larger than they are.
    """
    tensors: dict[str, Tensor] = {}
    described = []
    for number, each in enumerate(prefixes):
        tensors[f"{number}.ids"] = each.ids
        tensors |= {f"{number}.{name}": tensor for name, tensor in named_tensors(each.kv).items()}
        described.append({"parent": each.parent, "pinned": each.pinned, "states": each.kv.recurrent})
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = dict(zip(held, in_threads(digest_of, held.values()), strict=True))
    record = json.dumps({"format": FORMAT, "model": identity, "prefixes": described, "sha256": digests})
    try:
        with replacing(path) as beside:
            save_file(held, beside, {_RECORD: record, _DIGEST: _sha256(record)})
            try:
                with beside.open("rb") as file:
                    header_of(file)
            except ValueError:
                what = "what describes its tensors takes far more than they do. Save fewer in a file."
                raise PrefixFileError(f"{printable(path.resolve())} was not written: {what}") from None
    except SafetensorError as error:
        raise OSError(f"{printable(path.resolve())} could not be written ({error})") from None


class PrefixFile:
    """A file of kept prefixes, open for reading until it is closed. Only its header is read before `read`.

    Args:
        path: path of the file.

    Attributes:
        identity: the identity of the model that computed the prefixes.

    Raises:
        OSError: the file can't be read, or something else than a file is at its path.
        ValueError: no path can have such a name.
        PrefixFileError: it is no such file, is damaged, or has a format that this version does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not is_there(path):
            advice = "Check the path, or save prefixes there first."
            raise FileNotFoundError(f"path must be that of a file; there is no {printable(path)}. {advice}")
        with self._reading():
            self._file = TensorFile(path)
        try:
            self._read_record(self._file.metadata)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PrefixFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._prefixes)

    def close(self) -> None:
        """Close the file. Tensors that were read stay."""
        self._file.close()

    def check(self, template: PrefixKV, beside: int = 0) -> int:
        """Compare the tensors that the header names with the KV and states that the model has of a single token.

        Args:
            template: the KV and states of a single token.
            beside: bytes that are kept of each token beside its KV.

        Returns:
            Bytes that the prefixes take.

        Raises:
            PrefixFileError: a tensor is missing, unknown, or of another dtype or shape.
        """
        wanted: set[str] = set()
        nbytes = 0
        for number, each in enumerate(self._prefixes):
            length = self._length(number)
            expected = {"ids": (torch.int64, [length]), **shapes(template, length, each.states)}
            nbytes += length * beside
            for name, (dtype, shape) in expected.items():
                self._expect(f"{number}.{name}", dtype, shape)
                wanted.add(f"{number}.{name}")
                if name != "ids":
                    nbytes += math.prod(shape) * dtype.itemsize
        names = self._file.entries.keys()
        if wanted != names or wanted != self._digests.keys():
            odd = sorted((wanted ^ names) | (wanted ^ self._digests.keys()))[0]
            raise self.error(f"does not have the tensors of its prefixes: {shown(odd)} is one too many, or missing")
        return nbytes

    def read(self, template: PrefixKV, mmap: bool) -> list[PrefixEntry]:
        """Its prefixes, on the host, each byte compared with what was written.

        Args:
            template: the KV and states that the model has of a single token.
            mmap: leave the tensors mapped to the file instead of copying them.

        Raises:
            OSError: the file can't be read.
            PrefixFileError: as in `check`, or a tensor is not what was written.
        """
        self.check(template)
        tensors, bare = self._tensors(mmap), without_states(template)
        found: list[PrefixEntry] = []
        ends: list[int] = []
        for number, each in enumerate(self._prefixes):
            length = self._length(number)
            start = 0 if each.parent is None else ends[each.parent]
            ends.append(start + length)
            run = rebuilt(
                template if each.states else bare,
                lambda name, _, __, number=number: tensors[f"{number}.{name}"],  # type: ignore[misc]
            )
            run = replace(run, start=start, length=length)
            found.append(PrefixEntry(tensors[f"{number}.ids"], run, None, each.parent, each.pinned))
        return found

    def error(self, what: str) -> PrefixFileError:
        """An error of one line that names the file."""
        return PrefixFileError(f"{printable(self.path)} {on_a_line(what)}. {_ADVICE}")

    def _read_record(self, metadata: Mapping[str, Any]) -> None:
        text = metadata.get(_RECORD)
        if not isinstance(text, str):
            raise self.error("is a safetensors file, but none that relay_hf wrote: it has no record of prefixes")
        if metadata.get(_DIGEST) != _sha256(text):
            raise self.error("is damaged: its record is not what was written")
        record = self._parsed(text)
        found = record.get("format")
        if found != FORMAT:
            newer = ", by a newer relay_hf" if isinstance(found, int) and found > FORMAT else ""
            raise self.error(f"is of format {shown(found)}{newer}; this version reads format {FORMAT}")
        try:
            self.identity = dict(record["model"])
            self._prefixes = [_Described.of(each, number) for number, each in enumerate(record["prefixes"])]
            self._digests = dict[str, object](record["sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.error(f"has a record that makes no sense ({type(error).__name__}: {error})") from None

    def _parsed(self, record: str) -> dict[str, Any]:
        try:
            found = parsed(record)
        except ValueError as error:
            raise self.error(f"has a record that can't be read ({error})") from None
        return found if isinstance(found, dict) else {}

    def _length(self, number: int) -> int:
        name = f"{number}.ids"
        entry = self._file.entries.get(name)
        if entry is None or len(entry.shape) != 1 or not entry.shape[0]:
            raise self.error(f"has no token ids {name!r} [n]")
        return entry.shape[0]

    def _expect(self, name: str, dtype: torch.dtype, shape: list[int]) -> None:
        entry = self._file.entries.get(name)
        if entry is None:
            raise self.error(f"lacks the tensor {name!r}")
        if entry != (dtype, shape):
            got = f"{entry.dtype} {shown(entry.shape)}"
            raise self.error(f"has {name!r} as {got}, where this model keeps {dtype} {shape}")

    def _tensors(self, mmap: bool) -> dict[str, Tensor]:
        def checked(named: tuple[str, Tensor]) -> tuple[str, Tensor]:
            name, tensor = named
            if digest_of(tensor) != self._digests[name]:
                raise self.error(f"is damaged: {name!r} is not what was written")
            return named

        with self._reading():
            return dict(in_threads(checked, self._file.tensors(mmap)))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except PrefixFileError:
            raise
        except ValueError as error:
            raise self.error(f"is damaged, or no safetensors file ({error})") from None
        except OSError as error:
            if error.filename is not None:
                raise
            what = error.strerror or str(error)  # neither Python's error nor safetensors' names the file
            raise OSError(error.errno or errno.EIO, what, str(self.path)) from None


@dataclass(frozen=True)
class _Described:
    """The record's entry for a prefix."""

    parent: int | None
    pinned: bool
    states: bool

    @classmethod
    def of(cls, found: Mapping[str, Any], number: int) -> _Described:
        parent = found["parent"]
        if parent is not None and not (type(parent) is int and 0 <= parent < number):
            raise ValueError(f"prefix {number} extends {shown(parent)}")
        return cls(parent, found["pinned"] is True, found["states"] is True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
