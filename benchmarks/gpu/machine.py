"""What a result belongs to: chip, versions, commit and sources."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from relay_hf.cli.environment import environment

ROOT = Path(__file__).parents[2]
_PACKAGES = {"triton": ("triton", "pytorch-triton"), "flashinfer": ("flashinfer-python", "flashinfer")}


def device_of(dry_run: bool) -> torch.device:
    """The device that is measured.

    Raises:
        SystemExit: there is no GPU.
    """
    if dry_run:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --dry-run checks the benchmark itself on a CPU")
    return torch.device("cuda", torch.cuda.current_device())


def identity(device: torch.device) -> dict[str, Any]:
    """Chip, versions, commit: results of one identity may be mixed in one file."""
    content = environment()
    content["versions"] |= {name: _version(*packages) for name, packages in _PACKAGES.items()} | {"driver": "none"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        content["versions"] |= {"driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")}
        content["hardware"] |= {
            "multiprocessors": properties.multi_processor_count,
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "capability": f"sm_{properties.major}{properties.minor}",
        }
    return {"chip": chip_name(device), **content, "commit": _commit(), "dirty": _dirty(), "source": _source()}


def chip_name(device: torch.device) -> str:
    """Such as `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, Triton's interpreter"


def file_name(device: torch.device) -> str:
    """Of the chip's results."""
    return f"gpu_{re.sub('[^a-z0-9]+', '_', chip_name(device).lower()).strip('_')}.json"


def _version(*packages: str) -> str:
    """Of the first that is installed. Nothing is imported: FlashInfer takes seconds."""
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return "not installed"


def _commit() -> str:
    """Of the checkout; of a copy whose history is another's, or that has none, what `RELAY_COMMIT` says."""
    return os.environ.get("RELAY_COMMIT") or _output("git", "rev-parse", "HEAD")


def _dirty() -> bool | str:
    """Whether the checkout differs from its commit, results aside."""
    if "RELAY_COMMIT" in os.environ:
        return "unknown"  # `source` tells
    changed = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results", empty="clean")
    return changed if changed == "unknown" else changed != "clean"


def _source() -> str:
    """A digest of the library, which says more than a commit where the checkout is dirty or there is no git."""
    files = sorted(path for path in (ROOT / "relay_hf").rglob("*") if path.suffix in (".py", ".json"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _output(*command: str, empty: str = "unknown") -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or empty
