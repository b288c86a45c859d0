"""What is hard on a GPU alone: a capture that fails, two threads, weights that wait on the host, the command line."""

from __future__ import annotations

import json
import re
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from relay_hf import patched

from .context import Context, LeftOut
from .generate_calls import RELAY, SAMPLING, build, generate, generate_unseeded, inputs_of, seed, stock_of
from .generate_seen import Seen
from .processes import output_of
from .store import Record

_TIMEOUT = 120.0  # s, of the command line, which compiles kernels
_ROUNDS = 3


class Waits(nn.Module):
    """A part of a model that reads a number on the host, which no capture can."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, T, hidden]`, times one."""
        return self.inner(hidden) * (hidden[0, 0, 0] * 0 + 1).item()


def _failed_capture(context: Context) -> Record:
    """The call goes on step by step, what it draws included; and others draw and capture as before."""
    model, well, inputs, seen = build("llama", context), build("llama", context), inputs_of(context), Seen(context)
    model.model.norm = Waits(model.model.norm)
    seed()
    drawn = torch.rand(8, device=context.device)
    stock = {name: stock_of(model, inputs, **options) for name, options in (("greedy", {}), ("sampling", SAMPLING))}
    with patched(model, RELAY, trust=["model.norm"]), patched(well, RELAY):
        seen.compare("sampling, fails", model, generate(model, inputs, **SAMPLING), stock["sampling"], False)
        model.relay.clear()  # so that it is tried again
        seen.compare("greedy, fails", model, generate(model, inputs), stock["greedy"], False)
        seen.compare("sampling after it", model, generate(model, inputs, **SAMPLING), stock["sampling"], False)
        seed()
        again = torch.rand(8, device=context.device)
        seen.expect("torch draws other numbers after it", torch.equal(again, drawn))
        seen.compare("another model", well, generate(well, inputs, **SAMPLING), stock["sampling"])
    return seen.record()


def _threads(context: Context) -> Record:
    """One samples while the other decodes greedily: each as if alone, cold and on kept graphs."""
    models, inputs, seen = (build("llama", context), build("qwen3", context)), inputs_of(context), Seen(context)
    options: tuple[dict, ...] = (SAMPLING, {})
    stock = [stock_of(model, inputs, **each) for model, each in zip(models, options, strict=True)]
    together = threading.Barrier(2)

    def run(index: int) -> Tensor:
        together.wait(timeout=60)
        return generate_unseeded(models[index], inputs, **options[index])

    def both(what: str, pool: ThreadPoolExecutor, replayed: bool | None) -> None:
        seed()  # by this thread: a seed may not be set while another one captures
        for index, ours in enumerate(pool.map(run, range(2))):
            seen.compare(f"thread {index}, {what}", models[index], ours, stock[index], replayed)

    with patched(models[0], RELAY), patched(models[1], RELAY), ThreadPoolExecutor(2) as pool:
        both("cold", pool, replayed=None)  # before PyTorch 2.13 no thread captures beside another
        for model, each, expected in zip(models, options, stock, strict=True):
            seen.compare("alone", model, generate(model, inputs, **each), expected)
        for _ in range(_ROUNDS):
            both("on kept graphs", pool, replayed=True)
    return seen.record()


def _offloaded(context: Context) -> Record:
    """accelerate brings weights to the device module by module: no graph, for they lie elsewhere in each step."""
    if find_spec("accelerate") is None:
        raise LeftOut("accelerate is not installed")
    from accelerate import cpu_offload

    inputs, seen = inputs_of(context), Seen(context)
    stock = stock_of(build("llama", context), inputs)
    model = cpu_offload(build("llama", context).cpu(), execution_device=context.device)
    with patched(model, RELAY), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the inputs are where the weights will be
        for what in ("cold", "once more"):
            seen.compare(what, model, generate(model, inputs), stock, replayed=False, relayed=None)
    return seen.record()


def _doctor(context: Context) -> Record:
    """`relay-hf doctor`, in a process of its own."""
    return doctors(*output_of(sys.executable, "-m", "relay_hf", "doctor", "--json", timeout=_TIMEOUT))


def doctors(status: int, output: str) -> Record:
    """What its self-checks say, from its exit status and all that it has written.

    Not the status: the versions of a machine with a GPU are what they are, and one that no test ran with is wrong to
    the doctor. Whether it computes right is what is asked here. What else it says stands in the record.
    """
    start = re.search(r"^\{$", output, re.MULTILINE)  # what it says beside its JSON is in the output too
    try:
        found = json.JSONDecoder().raw_decode(output, start.start() if start else 0)[0]
        wrong = [f"{each['name']}: {each['detail']}" for each in found["checks"] if not each["passed"]]
        said = found["wrong"] + found["notes"]
        if not found["checks"]:
            wrong = [f"no self-check ran: {found['wrong']}"]
    except (KeyError, ValueError):
        wrong, said = [f"exit status {status}: {output[-2000:]}"], []
    return {"passed": not wrong, "wrong": wrong, "said": said}


CELLS: dict[str, Callable[[Context], Record]] = {
    "a capture that fails": _failed_capture,
    "two threads": _threads,
    "weights offloaded to the host": _offloaded,
    "relay-hf doctor": _doctor,
}
