"""Ways to change what a model computes, by name: each would make a kept prefix wrong.

A change is applied to two copies of a model, so what is random in it starts from one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from relay_hf.testing import prompts

INPUTS = prompts(30, (3, 5))
Change = Callable[[Any], Any]


def layer(model: Any) -> Any:
    """The first layer, of which every later KV is made."""
    return model.get_decoder().layers[0]


def projection(model: Any) -> nn.Parameter:
    return layer(model).self_attn.k_proj.weight


def rotary(model: Any) -> Any:
    return model.get_decoder().rotary_emb


def trained(optimizer: type[torch.optim.Optimizer], **options: Any) -> Change:
    """A step with the gradients of a loss. The model stays in eval mode: train() alone drops what is kept."""

    def change(model: Any) -> None:
        with torch.enable_grad():
            model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
        optimizer(model.parameters(), lr=0.05, **options).step()
        model.zero_grad(set_to_none=True)

    return change


def of_weight(change: Callable[[nn.Parameter], Any]) -> Change:
    def changed(model: Any) -> None:
        with torch.no_grad():
            change(projection(model))

    return changed


def other_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(value) * 0.1 for name, value in model.state_dict().items()}


def assign_data(weight: nn.Parameter) -> None:
    weight.data = weight.data + 0.1


def swap_tensors(weight: nn.Parameter) -> None:
    torch.utils.swap_tensors(weight, nn.Parameter(torch.randn_like(weight)))


WEIGHTS: dict[str, Change] = {
    "AdamW, foreach": trained(torch.optim.AdamW, foreach=True),
    "AdamW, fused": trained(torch.optim.AdamW, fused=True),
    "SGD": trained(torch.optim.SGD, foreach=False),
    "load_state_dict": lambda model: model.load_state_dict(other_weights(model)),
    "load_state_dict, assigned": lambda model: model.load_state_dict(other_weights(model), assign=True),
    "copy_": of_weight(lambda weight: weight.copy_(torch.randn_like(weight))),
    ".data assigned": of_weight(assign_data),
    ".data.add_": of_weight(lambda weight: weight.data.add_(0.1)),
    ".data.mul_": of_weight(lambda weight: weight.data.mul_(1.5)),
    "nn.init": of_weight(nn.init.normal_),
    "swap_tensors": of_weight(swap_tensors),
    "vector_to_parameters": lambda model: nn.utils.vector_to_parameters(
        torch.randn(sum(p.numel() for p in model.parameters())) * 0.1, model.parameters()
    ),
    "a parameter replaced": lambda model: setattr(
        layer(model).self_attn.k_proj, "weight", nn.Parameter(torch.randn_like(projection(model)))
    ),
}


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


class OneByte(nn.Module):
    """A linear layer whose weight is rounded to eight bits, in the place of what it is made from."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax() / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight * self.scale)


def quantize(model: Any) -> None:
    attention = layer(model).self_attn
    attention.k_proj = OneByte(attention.k_proj).eval()


def halve_magnitude(model: Any) -> None:
    parametrizations.weight_norm(layer(model).self_attn.k_proj)
    layer(model).self_attn.k_proj.parametrizations.weight.original0.data.mul_(0.5)
    model.eval()  # parametrizations are made in training mode


def parametrize_weight(model: Any) -> None:
    parametrize.register_parametrization(layer(model).self_attn.k_proj, "weight", Halved())
    model.eval()


def grow_embeddings(model: Any) -> None:
    """As for new special tokens; the prompt has one of them."""
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    model.get_input_embeddings().weight.data[int(INPUTS["input_ids"][1, 7])] += 1


def tie(model: Any) -> None:
    model.get_input_embeddings().weight = model.get_output_embeddings().weight


def one_row(model: Any) -> None:
    """As new tokens are initialised: through .data, a row of a large table, between all samples."""
    model.get_input_embeddings().weight.data[int(INPUTS["input_ids"][1, 7])] += 1


def exchange_layers(model: Any) -> None:
    """The attention stays at its place, so that the cache's indices do."""
    layers = model.get_decoder().layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


STRUCTURE: dict[str, Change] = {
    "parametrize": parametrize_weight,
    "weight_norm": halve_magnitude,
    "embeddings resized": grow_embeddings,
    "embeddings replaced": lambda model: model.set_input_embeddings(
        nn.Embedding.from_pretrained(torch.randn_like(model.get_input_embeddings().weight))
    ),
    "embeddings tied": tie,
    "one row of the embedding": one_row,
    "quantized in place": quantize,
    "a module replaced": lambda model: setattr(layer(model), "mlp", nn.Identity().eval()),
    "modules exchanged": exchange_layers,
    ".bfloat16() and back": lambda model: model.bfloat16().float(),
    ".half() and back": lambda model: model.half().float(),
}


def rope(model: Any) -> None:
    """A configuration's RoPE is read when the model is made; edited later, the buffers must be made anew."""
    model.config.rope_parameters["rope_theta"] = 50.0
    frequencies, rotary(model).attention_scaling = rotary(model).compute_default_rope_parameters(model.config)
    rotary(model).inv_freq = frequencies


def attribute(name: str, value: Any, of: Callable[[Any], Any] = lambda model: layer(model).self_attn) -> Change:
    def change(model: Any) -> None:
        if not hasattr(of(model), name):
            raise AttributeError(f"this test sets {name}, which nothing reads any more")
        setattr(of(model), name, value)

    return change


SETTINGS: dict[str, Change] = {
    "RoPE of the configuration": rope,
    "RoPE's buffer": lambda model: rotary(model).inv_freq.mul_(0.9),
    "RoPE's factor": attribute("attention_scaling", 2.0, of=rotary),
    "scale of attention": attribute("scaling", 0.9),
    "epsilon of a norm": attribute("variance_epsilon", 0.5, of=lambda model: layer(model).input_layernorm),
    "activation": attribute("act_fn", nn.ReLU().eval(), of=lambda model: layer(model).mlp),
}


def softcap(model: Any) -> None:
    for each in model.get_decoder().layers:
        each.self_attn.attn_logit_softcapping = 0.2


def window(model: Any) -> None:
    model.config.sliding_window = 5
    for each in model.get_decoder().layers:
        each.self_attn.sliding_window = 5 if each.self_attn.sliding_window else None


# Of a model that has both.
WINDOWED: dict[str, Change] = {
    "softcap": softcap,
    "window": window,
    "window of the configuration": lambda model: setattr(model.config, "sliding_window", 5),
}


@dataclass
class Record:
    factor: float = 1.0


class OfItsOwn(nn.Module):
    """A module of a user's, that holds what it computes with in every way there is."""

    def __init__(self, inner: nn.Module) -> None:
        vars(self)["early"] = 1.0  # before what every module has
        super().__init__()
        self.inner = inner
        self.number, self.function, self.kind = 1.0, torch.sin, torch.float32
        self.factors, self.by_name, self.nested = [1.0, 1.0], {"a": {"b": 1.0}}, [(1, [1.0])]
        self.functions = [lambda hidden: hidden]
        self.record, self.space = Record(), SimpleNamespace(factor=1.0)
        self.scalar, self.array = np.float32(1), np.ones(3)
        self.tensor, self.tensors = torch.ones(40), [torch.ones(40)]
        self.register_buffer("buffer", torch.ones(40))

    def method(self) -> float:
        return 1.0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        number = self.early * self.number * self.factors[0] * self.by_name["a"]["b"] * self.nested[0][1][0]
        number *= float(self.scalar * self.array[0]) * self.record.factor * self.space.factor * self.method()
        factor = self.tensor[0] * self.tensors[0][0] * self.buffer[0]
        return self.inner(hidden) + self.functions[0](self.function(number * factor).to(self.kind).float())


def own(change: Callable[[OfItsOwn], Any]) -> Change:
    return lambda model: change(layer(model).mlp)


def double(*_: Any) -> float:
    return 2.0


def refill(module: OfItsOwn) -> None:
    """The new function may lie where the old one lay."""
    module.functions.clear()
    module.functions.append(lambda hidden: hidden * 0.3)


OWN: dict[str, Change] = {
    "a number set first": own(lambda module: setattr(module, "early", 2.0)),
    "a number": own(lambda module: setattr(module, "number", 2.0)),
    "a list, replaced": own(lambda module: setattr(module, "factors", [2.0, 1.0])),
    "a list, changed in place": own(lambda module: module.factors.__setitem__(0, 2.0)),
    "a list in a tuple in a list": own(lambda module: module.nested[0][1].__setitem__(0, 2.0)),
    "a dictionary, replaced": own(lambda module: setattr(module, "by_name", {"a": {"b": 2.0}})),
    "a dictionary in a dictionary": own(lambda module: module.by_name["a"].update(b=2.0)),
    "a dataclass": own(lambda module: setattr(module.record, "factor", 2.0)),
    "an object, replaced": own(lambda module: setattr(module, "space", Record(2.0))),
    "a namespace": own(lambda module: setattr(module.space, "factor", 2.0)),
    "an array's scalar": own(lambda module: setattr(module, "scalar", np.float32(2))),
    "an array, changed in place": own(lambda module: module.array.__imul__(2)),
    "a function": own(lambda module: setattr(module, "function", torch.cos)),
    "a function in a list": own(refill),
    "a method of the instance": own(lambda module: setattr(module, "method", MethodType(double, module))),
    "a dtype": own(lambda module: setattr(module, "kind", torch.bfloat16)),
    "a tensor, replaced": own(lambda module: setattr(module, "tensor", torch.full((40,), 2.0))),
    "a tensor, changed in place": own(lambda module: module.tensor.data.mul_(2)),
    "a tensor in a list": own(lambda module: module.tensors[0].data.mul_(2)),
    "a buffer": own(lambda module: module.buffer.data.mul_(2)),
}
