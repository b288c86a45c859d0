"""Kept prefixes to disk and back: `python -m benchmarks.saving --json out.json`, beside a plain read of the file."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from transformers import LlamaConfig, LlamaForCausalLM

import relay_hf
from benchmarks.options import output_file
from relay_hf.cli.benchmark import record

_BYTES_A_TOKEN = 128 * 2**10  # of KV: 32 layers of 8 heads of 64, in float32


def narrow_llama() -> LlamaForCausalLM:
    """A Llama with the KV of a large one and next to nothing else, so that a prefix of 1 GiB is prefilled soon."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 64, "num_attention_heads": 8, "vocab_size": 1000}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=32, max_position_embeddings=2**16)).eval()


def forget(path: Path) -> None:
    """Make the system read the file from the disk the next time."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    """Read a file, and keep nothing of it."""
    buffer = bytearray(2**24)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> int:
    """Save and load in turns, cold and from memory; print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the prefix (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the file goes (default: the folder for temporary files)")
    parser.add_argument("--json", type=output_file, help="write all rounds, versions and hardware here")
    arguments = parser.parse_args()

    relay = relay_hf.patch_model(narrow_llama(), max_store_bytes=2 * arguments.mib * 2**20).relay
    tokens = arguments.mib * 2**20 // _BYTES_A_TOKEN
    prefix = relay.warm(torch.arange(tokens) % 1000)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "prefix.safetensors"
        seconds, interrupted = rounds(relay, path, arguments.rounds)
        size = path.stat().st_size

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    title = f"a prefix of {len(prefix):,} tokens, {size / 2**20:.0f} MiB"
    table = Table("", *(Column(name, justify="right") for name in ("seconds", "min - max", "GiB/s")), title=title)
    for name, values in seconds.items():
        spread = f"{min(values):.2f} - {max(values):.2f}"
        table.add_row(name, f"{medians[name]:.2f}", spread, f"{size / 2**30 / medians[name]:.2f}")
    Console().print(table)
    if arguments.json:
        found = {"prefix": {"tokens": len(prefix), "bytes": size}, "seconds": seconds, "medians": medians}
        record.write_json(arguments.json, record.result(interrupted, **found))
    return record.exit_code(interrupted)


def rounds(relay: relay_hf.relay.Relay, path: Path, count: int) -> tuple[dict[str, list[float]], bool]:
    """Seconds of each way, round by round, and whether Ctrl-C cut them short after the first.

    The file's reads come from the disk where it says so.
    """
    seconds: dict[str, list[float]] = {}
    try:
        for _ in range(count):
            took = a_round(relay, path)
            seconds = {name: [*seconds.get(name, ()), value] for name, value in took.items()}
    except KeyboardInterrupt:
        if not seconds:
            raise
        return seconds, True
    return seconds, False


def a_round(relay: relay_hf.relay.Relay, path: Path) -> dict[str, float]:
    """Seconds of each way."""
    seconds = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - start

    timed("save", lambda: relay.save(path))
    for name, mmap in (("load", False), ("load, mapped", True)):
        relay.clear()
        forget(path)
        timed(f"{name}, from the disk", lambda mmap=mmap: relay.load(path, mmap=mmap))
        relay.clear()
        timed(f"{name}, from the system's memory", lambda mmap=mmap: relay.load(path, mmap=mmap))
    forget(path)
    timed("plain read, from the disk", lambda: read(path))
    return seconds


if __name__ == "__main__":
    sys.exit(main())
