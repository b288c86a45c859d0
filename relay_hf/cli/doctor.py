"""`relay-hf doctor`: what there is, what would run, and whether it computes what it should."""

from __future__ import annotations

import importlib
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import relay_hf

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

    Attention is held to the reference in float64 and to stock attention's own error in other dtypes, and a patched
    generate() to stock's tokens. Exit code 1, with a line that says what is wrong, if anything is.
    """
    out = output(quiet=as_json)
    packages = system.packages()
    content: dict[str, Any] = {"relay_hf": relay_hf.__version__, "packages": [asdict(each) for each in packages]}
    out.print(_package_table(packages))
    wrong = [f"{each.name} is {each.installed or 'not installed'}" for each in packages if not each.fits]
    advice = 'pip install --upgrade relay_hf brings what it needs, or pip install "NAME SPECIFIER" with the table\'s.'
    if not wrong:
        wrong, more = _look(out)
        content |= more
        advice = "Please report it with the output of relay-hf doctor --json."
    if as_json:
        print_json(content | {"ok": not wrong, "wrong": wrong})
    if wrong:
        said = escape("; ".join(wrong))
        progress().print(f"[bold red]Something is wrong:[/] {said}.\n{advice}", highlight=False)
        raise typer.Exit(1)
    out.print("\nAll is well.")


def _look(out: Console) -> tuple[list[str], dict[str, Any]]:
    """What is wrong, and what there is to tell, where all packages are there."""
    try:
        with progress().status("loading torch and Transformers ..."):
            for name in ("torch", "transformers", "relay_hf.patching"):
                importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        return [f"{name} can't be imported: {type(error).__name__}: {error}".splitlines()[0]], {}
    import torch

    from relay_hf.bench.environment import environment

    from .checks import self_check

    models.quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = environment()["hardware"]
    if device.type == "cuda":
        hardware["gpu"] = system.gpu(device)
    computes = _computes(device)
    out.print(_machine_table(hardware, computes))
    torch.set_num_threads(1)  # tiny models gain nothing from threads, and lose much where others need the cores
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

    from relay_hf import gate
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
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in gate.MEASURED:
        auto = "leaves calls to stock: the kernels have not been measured on this kind of GPU; policy='always' relays"
    return {"backend": backend, "why": why, "policy_auto": auto}


def _package_table(packages: list[system.Package]) -> Table:
    table = Table("package", "installed", "needed", "", title=f"relay_hf {relay_hf.__version__}", title_justify="left")
    for each in packages:
        table.add_row(each.name, each.installed or "-", each.needed or "any", _MARK[each.fits].rstrip())
    return table


def _machine_table(hardware: dict[str, Any], computes: dict[str, str]) -> Table:
    table = Table(show_header=False)
    cpu = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads for torch"
    table.add_row("processor", f"{cpu}, {hardware['memory_gib']} GiB, {hardware['system']}")
    gpu = hardware.get("gpu")
    text = "none that torch sees"
    if gpu:
        text = f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB, driver {gpu['driver']}"
    table.add_row("GPU", text)
    table.add_row("attention by", f"[bold]{computes['backend']}[/]: {computes['why']}")
    table.add_row('policy "auto"', computes["policy_auto"])
    return table
