"""The process of an engine: it loads a model, then answers requests, a line of JSON each, until its input ends.

`python -m benchmarks.peers.worker llamacpp`, in the engine's environment. The first line of the input is the setup.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from .engines import Engine, Setup
from .jobs import Job


def main() -> None:
    """Answer until the input ends. What libraries print goes to the error output, so that answers stay apart."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine: Engine | None = None

    def load(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal engine
        engine = importlib.import_module(f"{__package__}.engines.{sys.argv[1]}").load(Setup(**request["setup"]))
        return {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        before = request["before"] and Job.of_json(request["before"])
        call = engine.prepare(Job.of_json(request["job"]), before)
        began = time.perf_counter()
        tokens = call()
        return {"seconds": time.perf_counter() - began, "tokens": tokens}

    handlers = {"load": load, "answer": answer, "about": lambda request: engine.about()}
    serve(sys.stdin, answers, handlers)


def serve(requests: TextIO, answers: TextIO, handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer each line of `requests`, `{"ask": NAME, ...}`, by its handler; an exception is an answer with `error`."""
    for line in requests:
        request = json.loads(line)
        try:
            found = handlers[request["ask"]](request)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
