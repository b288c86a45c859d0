"""The packages of a machine, beside those that are needed and those that were tested, and its GPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import relay_hf
from relay_hf.model import tested

if TYPE_CHECKING:
    import torch

_NAME = "relay_hf"


@dataclass(frozen=True)
class Package:
    """A package that relay_hf needs: the installed version (None: not installed), and the allowed versions."""

    name: str
    installed: str | None
    needed: str
    fits: bool


@dataclass(frozen=True)
class Needs:
    """Versions of Python and of packages that relay_hf needs; `source`: the file that says so, None if installed."""

    python: str
    packages: tuple[str, ...]
    source: Path | None = None


def needs() -> Needs | None:
    """From the metadata of the installed relay_hf, or the pyproject.toml of a checkout; None where there is neither."""
    try:
        ours = metadata.metadata(_NAME)
        return Needs(ours["Requires-Python"], tuple(metadata.requires(_NAME) or ()))
    except metadata.PackageNotFoundError:
        path = Path(relay_hf.__file__).parents[1] / "pyproject.toml"
    if not path.is_file():
        return None
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != _NAME:  # of another project, with a copy of relay_hf in it
        return None
    return Needs(project["requires-python"], tuple(project["dependencies"]), path)


def packages(needed: Needs) -> list[Package]:
    """Python, and the packages that relay_hf needs; nothing is imported."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted: list[tuple[str, str | None, SpecifierSet]] = [
        ("python", platform.python_version(), SpecifierSet(needed.python))
    ]
    for line in needed.packages:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted.append((requirement.name, _version(requirement.name), requirement.specifier))
    return [
        Package(
            name,
            found,
            ", ".join(sorted(map(str, specifier), reverse=True)),
            found is not None and specifier.contains(found, prereleases=True),
        )
        for name, found, specifier in wanted
    ]


def untried(device: str | None = None) -> list[str]:
    """Installed versions that no test ran: of Transformers and, on a `device` "CPU" or "CUDA", of PyTorch."""
    from packaging.version import Version

    name, package = ("PyTorch", "torch") if device else ("Transformers", "transformers")
    known = (tested.PYTORCH[device],) if device else tested.TRANSFORMERS
    found = _version(package)
    where = f" on {device}" if device else ""
    if found is None or Version(found).public in known:
        return []
    if Version(found) > Version(known[-1]):
        return [f"{name} {found} is newer than {known[-1]}, the newest that was tested{where}."]
    return [f"{name} {found} was not tested{where}."]


def gpu(device: torch.device) -> dict[str, Any]:
    """A CUDA device's name, compute capability, memory (GiB) and driver."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return next(iter(done.stdout.splitlines()), "unknown")
