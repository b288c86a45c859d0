"""An engine's process, as its starter sees it: it runs while it is asked, and is stopped while another one is timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .engines import Setup
from .jobs import Job

ROOT = Path(__file__).parents[2]
_PATIENCE = 20  # seconds that an engine has to end


class EngineFailed(Exception):
    """An engine can't be had, or can't answer; the message says why."""


class EngineProcess:
    """An engine in an environment of its own.

    Between requests the process has SIGSTOP: threads that wait for work in a loop would take a core from another one.
    """

    def __init__(self, environment: str, module: str, setup: Setup, log: Path) -> None:
        """Start and load it.

        Args:
            environment: folder of the virtual environment, below the checkout.
            module: of the engine, in `engines`.
            setup: what it loads.
            log: file of what its libraries print.

        Raises:
            EngineFailed: there is no such environment, or the engine can't load the model.
        """
        python = ROOT / environment / "bin" / "python"
        if not python.exists():
            raise EngineFailed(f"there is no environment {environment}; make {environment}/.ready makes it")
        variables = {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", f"{__package__}.worker", module],
                cwd=ROOT,
                env=os.environ | variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
            )
        self._log = log
        try:
            self._ask(ask="load", setup=asdict(setup))
        except BaseException:
            self.close()
            raise

    def about(self) -> dict[str, Any]:
        """As `Engine.about`."""
        return self._ask(ask="about")

    def answer(self, job: Job, before: Job | None) -> tuple[float, list[list[int]]]:
        """Seconds of a call and its new tokens, `[rows][new]`; arguments as of `Engine.prepare`.

        Raises:
            EngineFailed: the call failed.
        """
        found = self._ask(ask="answer", job=job.as_json(), before=before and before.as_json())
        return found["seconds"], found["tokens"]

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            last = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise EngineFailed(f"its process ended with code {code}: {' '.join(last) or 'it said nothing'}")
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # a signal takes a moment
        found = json.loads(line)
        if "error" in found:
            raise EngineFailed(found["error"])
        return found

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
