"""PyTorch's modules and functions that act on each token by itself.

PyTorch has pooling, recurrent layers and sums over tokens too. Transformers' models use some of these, each as it must
be used. What a user puts into a model is not known to be used so.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrizations

_MODULES = frozenset(
    {
        *("AlphaDropout", "Dropout", "Embedding", "Identity", "LayerNorm", "Linear", "RMSNorm"),
        *("Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"),
        *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid"),
        *("Mish", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign"),
        *("Tanh", "Tanhshrink", "Threshold"),
    }
)
_FOLDER, _LOSSES = "torch.nn.modules.", "torch.nn.modules.loss"  # no forward of a model runs a loss without labels
# In training mode it changes in each forward.
CHANGING = "_SpectralNorm"

_NAMES = frozenset(
    {
        *("abs", "celu", "celu_", "cos", "elu", "elu_", "erf", "exp", "gelu", "hardshrink", "hardsigmoid", "hardswish"),
        *("hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "log_sigmoid", "logsigmoid", "mish", "neg", "relu"),
        *("relu6", "relu_", "selu", "selu_", "sigmoid", "silu", "sin", "softplus", "softshrink", "softsign", "square"),
        *("tanh", "tanhshrink"),
        *("dropout", "embedding", "layer_norm", "rms_norm"),
    }
)
_OWNERS = (torch, functional, Tensor)
_FUNCTIONS = {id(getattr(owner, name, None)) for owner in _OWNERS for name in _NAMES} - {id(None)}
# The first is of parameters, and of other classes of tensors.
_FUNCTIONS |= {id(torch._C._disabled_torch_function_impl), id(functional.linear)}
_FILE = functional.relu.__code__.co_filename


def is_by_token(function: Any) -> bool:
    """Whether a function of PyTorch is known by its name to act on each token by itself."""
    return id(function) in _FUNCTIONS


def may_mix(value: Any) -> bool:
    """Whether a class of modules, or a function of `torch.nn.functional`, is PyTorch's and may look at several tokens.

    A function that does not stand in `torch.nn.functional` under its own name does not count.
    """
    if isinstance(value, FunctionType):
        of_file = value.__code__.co_filename == _FILE and value.__closure__ is None
        return of_file and vars(functional).get(value.__name__) is value and not is_by_token(value)
    module, name = value.__module__, value.__name__
    if module == parametrizations.__name__:
        return bool(name == CHANGING)
    return bool(module.startswith(_FOLDER) and module != _LOSSES and name not in _MODULES)
