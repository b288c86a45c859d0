"""`relay-hf doctor`: what is installed, which backend would compute, and a self-check of it."""

from __future__ import annotations

import importlib
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import relay_hf
from relay_hf.model import tested

from . import models, system
from .console import examples, output, print_json, progress
from .options import Json

if TYPE_CHECKING:
    import torch

_MARK = {True: "[green]ok[/]    ", False: "[bold red]failed[/]"}


@examples(
    ("is all well?", "relay-hf doctor"),
    ("for a bug report, or a script", "relay-hf doctor --json"),
)
def doctor(as_json: Json = False) -> None:
    """What is installed, what would compute attention here and why, and a self-check of a few seconds.

    Attention is compared with the reference in float64, and with stock attention's own error in other dtypes. Tokens of
    a patched generate() are compared with stock's. If anything is wrong, a line says what, and the exit code is 1.
    """
    out = output(quiet=as_json)
    needed = system.needs()
    packages = system.packages(needed) if needed else []
    notes = system.untried()
    content: dict[str, Any] = {
        "relay_hf": relay_hf.__version__,
        "installed": needed is not None and needed.source is None,
        "packages": [asdict(each) for each in packages],
        "tested": {name.lower(): value for name, value in vars(tested).items() if name.isupper()},
    }
    if packages:
        out.print(_package_table(packages))
    if needed and needed.source:
        out.print(f"relay_hf is not installed; what it needs stands in {escape(str(needed.source))}.")
    out.print(_tested_table())
    wrong = [f"{each.name} is {each.installed or 'not installed'}" for each in packages if not each.fits]
    if needed is None:
        wrong.append("relay_hf is not installed, and no pyproject.toml of its own lies beside it")
    advice = 'pip install --upgrade relay_hf brings what it needs, or pip install "NAME SPECIFIER" with the table\'s.'
    # With a wrong version of a package that only computes, the self-check still runs: its result says more.
    if packages and all(each.fits or (each.installed and each.name != "transformers") for each in packages):
        found, more = _look(out, notes)
        content |= more
        if found and not wrong:
            advice = "Please report it with the output of relay-hf doctor --json."
        wrong += found
    content["notes"] = notes
    if as_json:
        print_json(content | {"ok": not wrong, "wrong": wrong})
    if wrong:
        said = escape("; ".join(wrong).rstrip("."))
        progress().print(f"[bold red]Something is wrong:[/] {said}.\n{advice}", highlight=False)
        raise typer.Exit(1)
    out.print("\nAll is well.")


def _unimportable(name: str, error: Exception) -> str:
    """Why a package can't be imported. If Transformers lacks an import of relay_hf, the words are `patch_model`'s."""
    refusal = None
    with suppress(Exception):
        from relay_hf.model.upstream.version import refusal_of_import

        refusal = refusal_of_import(error)
    return refusal or f"{name} can't be imported: {type(error).__name__}: {error}".splitlines()[0]


def _look(out: Console, notes: list[str]) -> tuple[list[str], dict[str, Any]]:
    """What is wrong, and the facts to print, if all packages are installed. `notes` gets what no test ran."""
    try:
        with progress().status("loading torch and Transformers ..."):
            for name in ("torch", "transformers", "relay_hf.patching"):
                importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        return [_unimportable(name, error)], {}
    import torch

    from relay_hf.model.upstream import drift
    from relay_hf.model.upstream.version import refusal_of

    from .environment import environment
    from .self_check import self_check

    models.quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = environment()["hardware"]
    if device.type == "cuda":
        hardware["gpu"] = system.gpu(device)
    computes = _computes(device)
    out.print(_machine_table(hardware, computes))
    notes += system.untried(device.type.upper())
    for note in notes:
        out.print(f"[yellow]note[/]    {note}")
    difference = drift.changed()
    if difference is not None:  # patch_model refuses it with the same words
        return [refusal_of(difference)], {"hardware": hardware, **computes, "checks": []}
    torch.set_num_threads(1)  # tiny models gain nothing from threads, and lose much if other work needs the cores
    start, found = time.perf_counter(), []
    for check in self_check(device):
        found.append(check)
        out.print(f"{_MARK[check.passed]}  {check.name}: {escape(check.detail)}")
    out.print(f"{len(found)} checks in {time.perf_counter() - start:.1f} s")
    wrong = [f"{check.name}: {check.detail}" for check in found if not check.passed]
    return wrong, {"hardware": hardware, **computes, "checks": [asdict(check) for check in found]}


def _computes(device: torch.device) -> dict[str, str]:
    """What would compute attention, why, and what policy "auto" does here."""
    import torch

    from relay_hf.generation import cost_model
    from relay_hf.ops import resolve_backend

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backend, why = resolve_backend("auto", device, dtype), "the Triton kernels run on this GPU"
    if device.type != "cuda":
        why = "there is no CUDA device, which the Triton kernels need"
    elif backend != "triton":
        try:
            resolve_backend("triton", device, dtype)
        except RuntimeError as error:
            why = str(error).removeprefix('backend="triton": ').partition(";")[0]
    auto = "relays a call where a cost model expects that to be faster"
    if cost_model.Machine.of(device, dtype) is None:
        auto = "leaves calls to stock: what they cost on this kind of device is not known; policy='always' relays"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in cost_model.MEASURED:
        auto = "leaves calls to stock: the kernels have not been measured on this kind of GPU; policy='always' relays"
    return {"backend": backend, "why": why, "policy_auto": auto}


def _package_table(packages: list[system.Package]) -> Table:
    table = Table("package", "installed", "needed", "", title=f"relay_hf {relay_hf.__version__}", title_justify="left")
    for each in packages:
        table.add_row(each.name, each.installed or "-", each.needed or "any", _MARK[each.fits].rstrip())
    return table


def _tested_table() -> Table:
    newest = tested.TRANSFORMERS[-1]
    versions = {"Python": tested.PYTHON, "PyTorch": tested.PYTORCH}
    table = Table(show_header=False)
    table.add_row("tested with", f"Transformers {', '.join(tested.TRANSFORMERS)}: {newest} in full, the others in part")
    for name, by_device in versions.items():
        table.add_row("", f"{name} " + ", ".join(f"{version} on {device}" for device, version in by_device.items()))
    table.add_row("no test ran", "\n".join(tested.NOT_RUN))
    for device, known in tested.DEVICES.items():
        table.add_row(device, known)
    return table


def _machine_table(hardware: dict[str, Any], computes: dict[str, str]) -> Table:
    table = Table(show_header=False)
    cpu = f"{hardware['cpu']}; cores: {hardware['cores']}, torch's threads: {hardware['threads']}"
    table.add_row("processor", f"{cpu}, {hardware['memory_gib']} GiB, {hardware['system']}")
    gpu = hardware.get("gpu")
    text = "none that torch sees"
    if gpu:
        text = f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB, driver {gpu['driver']}"
    table.add_row("GPU", text)
    table.add_row("attention by", f"[bold]{computes['backend']}[/]: {computes['why']}")
    table.add_row('policy "auto"', computes["policy_auto"])
    return table
