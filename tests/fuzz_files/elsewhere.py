"""What may lie at a path in the place of a file of prefixes."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

Place = Callable[[Path, bytes, random.Random], None]


class Executed:
    """Says so, where it is unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('unpickled')",))


def pickled(path: Path, data: bytes, rng: random.Random) -> None:
    path.write_bytes(pickle.dumps(Executed(), protocol=rng.randrange(6)))


def torch_saved(path: Path, data: bytes, rng: random.Random) -> None:
    torch.save({"0.ids": torch.zeros(3), "x": Executed()}, path, _use_new_zipfile_serialization=rng.random() < 0.7)


def other_tensors(path: Path, data: bytes, rng: random.Random) -> None:
    save_file({"0.ids": torch.zeros(3, dtype=torch.int64)}, path)


def noise(path: Path, data: bytes, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.choice((0, 5, 8, 16, 5000))))


def folder(path: Path, data: bytes, rng: random.Random) -> None:
    path.mkdir()


def pipe(path: Path, data: bytes, rng: random.Random) -> None:
    """Nobody writes into it: whoever opens it waits."""
    os.mkfifo(path)


def device(path: Path, data: bytes, rng: random.Random) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path, data: bytes, rng: random.Random) -> None:
    """To a file that is as it was written."""
    target = path.with_name("target")
    target.write_bytes(data)
    path.symlink_to(target.name)


def loose_link(path: Path, data: bytes, rng: random.Random) -> None:
    path.symlink_to(rng.choice((path.name, "absent")))


KINDS: tuple[Place, ...] = (pickled, torch_saved, other_tensors, noise, folder, pipe, device, link, loose_link)
