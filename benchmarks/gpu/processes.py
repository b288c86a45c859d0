"""Other processes: their output, and their end with all that they started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress

import psutil

from .context import LeftOut
from .machine import ROOT

_END = 30  # s that a killed process may take to give its memory back


def output_of(*command: str, timeout: float, **environment: str) -> tuple[int, str]:
    """Exit status and output of a command.

    Raises:
        LeftOut: it was not done after `timeout` seconds; it and what it started are ended.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end([process.pid])
            raise LeftOut(f"not done after {timeout:g} s") from None
    return process.returncode, output


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of this package."""
    return sys.executable, "-m", f"{__package__}.{name}", *arguments


def end(pids: Iterable[int]) -> None:
    """Kill processes and all that they started, and wait until they are gone."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=_END)
