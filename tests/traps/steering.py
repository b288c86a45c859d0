"""Code that moves what goes through a layer by the mean of all tokens that go through at once, and where it is put."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP

from relay_hf.testing import prompts

INPUTS = prompts(20, (3, 7, 1, 5))
MLP = "model.layers.0.mlp"


def steered(hidden: Tensor, dim: int = 1) -> Tensor:
    return hidden + 2.0 * hidden.mean(dim=dim, keepdim=True)


class Steered(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return steered(self.inner(*args, **kwargs))


class SteeredMLP(LlamaMLP):
    def forward(self, hidden: Tensor) -> Tensor:
        return steered(super().forward(hidden))


class SteeredTensor(Tensor):
    """Steered where a layer multiplies or projects by it."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*args, **(kwargs or {}))
        acts = function in (nn.functional.linear, Tensor.mul, Tensor.__mul__)
        return steered(found) if acts and found.dim() == 3 else found


class Callable:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, hidden: Tensor) -> Tensor:
        return steered(self.function(hidden))


def mlp_of(model: Any) -> Any:
    return model.get_submodule(MLP)


def replace_forward(model: Any) -> None:
    forward = mlp_of(model).forward
    mlp_of(model).forward = lambda hidden: steered(forward(hidden))


def steering_in_a_file_of_models(monkeypatch: Any) -> str:
    rotate = modeling_llama.apply_rotary_pos_emb

    def other(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        query, key = rotate(query, key, *args, **kwargs)
        return steered(query, dim=2), key

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", other)
    return (
        "the function transformers.models.llama.modeling_llama.apply_rotary_pos_emb was replaced by "
        f"{__name__}.steering_in_a_file_of_models.other"
    )
