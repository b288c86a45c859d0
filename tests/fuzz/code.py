"""Code of a user's, or of PyTorch's, that is put into both models of a case, and taken out at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .case import Case
from .models import Pair


@contextmanager
def put_inside(case: Case, pair: Pair) -> Iterator[None]:
    """Within it one of both models' linear layers has the code that the case says."""
    names = [name for name, module in pair.stock.named_modules() if type(module) is nn.Linear]
    if not case.inside or not names:
        yield
        return
    name = random.Random(f"inside {case.number}").choice(names)
    undo = [CODE[case.inside](model.get_submodule(name)) for model in (pair.stock, pair.ours)]
    before = pair.ours.relay.config
    if case.inside == "vouched":
        pair.ours.relay.config = replace(before, trust=["", name])
    try:
        yield
    finally:
        for each in undo:
            each()
        pair.ours.relay.config = before


def steered(hidden: Tensor) -> Tensor:
    """Moved by the mean of all tokens that go through at once."""
    return hidden + 0.5 * hidden.mean(dim=-2, keepdim=True)


class Steered(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return steered(super().forward(input))


class Doubled(nn.Module):
    """Of a weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _forward(layer: nn.Module) -> Callable[[], None]:
    forward = layer.forward
    layer.__dict__["forward"] = lambda hidden: steered(forward(hidden))
    return lambda: layer.__dict__.pop("forward")


def _class(layer: nn.Module) -> Callable[[], None]:
    layer.__class__ = Steered

    def undo() -> None:
        layer.__class__ = nn.Linear

    return undo


def _hook(layer: nn.Module) -> Callable[[], None]:
    return layer.register_forward_hook(lambda module, inputs, output: steered(output)).remove


def _parametrized(layer: nn.Module) -> Callable[[], None]:
    weight = layer.weight
    parametrize.register_parametrization(layer, "weight", Doubled())

    def undo() -> None:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight = weight  # the same object: other modules may be tied to it

    return undo


def _vouched(layer: nn.Module) -> Callable[[], None]:
    forward = layer.forward
    layer.__dict__["forward"] = lambda hidden: 0.5 * forward(hidden)
    return lambda: layer.__dict__.pop("forward")


CODE: dict[str, Callable[[nn.Module], Callable[[], None]]] = {
    "forward": _forward,
    "class": _class,
    "hook": _hook,
    "parametrized": _parametrized,
    "vouched": _vouched,
}
