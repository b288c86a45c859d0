"""A file of prefixes in its parts, which can be changed one by one, and a consistent file made of them again."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

RECORD, DIGEST = "relay_hf", "relay_hf.sha256"
_TORCH = {"I64": "torch.int64", "F32": "torch.float32", "F64": "torch.float64", "F16": "torch.float16"}


@dataclass
class Held:
    """A tensor: its dtype as safetensors names it, its shape, its bytes."""

    dtype: str
    shape: list[int]
    data: bytes

    @property
    def digest(self) -> str:
        """What the record would have to say of it."""
        found = hashlib.sha256(f"{_TORCH.get(self.dtype, self.dtype)} {tuple(self.shape)} ".encode())
        found.update(self.data)
        return found.hexdigest()


@dataclass
class Parts:
    """What a file says and holds.

    Attributes:
        record: the description of its prefixes, parsed.
        tensors: by name.
        metadata: what the header's metadata have beside the record and its sum.
    """

    record: dict[str, Any]
    tensors: dict[str, Held]
    metadata: dict[str, Any] = field(default_factory=dict)

    def copied(self) -> Parts:
        """The same, to be changed."""
        return copy.deepcopy(self)


@dataclass
class File:
    """A file of safetensors on its way to its bytes: the entries of its header in their order, and what lies behind.

    Attributes:
        entries: names and values of the header's object; a name may stand in it twice.
        data: what lies behind the header.
    """

    entries: list[tuple[str, Any]]
    data: bytes

    def named(self, name: str) -> Any:
        """The first value of a name."""
        return next(value for found, value in self.entries if found == name)

    @property
    def tensor_entries(self) -> list[dict[str, Any]]:
        """What the header says of tensors, where that is still an object."""
        return [value for name, value in self.entries if name != "__metadata__" and isinstance(value, dict)]

    def header(self) -> str:
        """The header's JSON."""
        return "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in self.entries) + "}"


def parts_of(data: bytes) -> Parts:
    """The parts of a valid file."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, value in header.items():
        start, end = value["data_offsets"]
        tensors[name] = Held(value["dtype"], value["shape"], body[start:end])
    return Parts(json.loads(metadata[RECORD]), tensors)


def file_of(parts: Parts, record: str | None = None, sums: bool = True) -> File:
    """A file that is consistent in itself: offsets and sums are those of the parts.

    Args:
        parts: what is in it.
        record: the text of the record; None: that of the parts.
        sums: make those of the tensors anew, as somebody would who changed them on purpose.
    """
    if sums and isinstance(parts.record.get("sha256"), dict):
        for name, tensor in parts.tensors.items():
            parts.record["sha256"][name] = tensor.digest
    text = json.dumps(parts.record) if record is None else record
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    entries: list[tuple[str, Any]] = [("__metadata__", {RECORD: text, DIGEST: digest, **parts.metadata})]
    body = b""
    for name, tensor in parts.tensors.items():
        span = [len(body), len(body) + len(tensor.data)]
        entries.append((name, {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}))
        body += tensor.data
    return File(entries, body)


def bytes_of(header: str, data: bytes) -> bytes:
    """A safetensors file."""
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data
