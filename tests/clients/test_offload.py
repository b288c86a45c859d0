"""accelerate: a model whose weights wait in CPU memory or on disk, and come to where it runs module by module."""

import copy

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

import relay_hf

from .texts import SYSTEM, texts

ROWS = 4
# On a machine without a GPU "cpu" is where a model runs, and "disk" what is offloaded.
SOME = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "": "disk"}
ALL = {"": "disk"}


@pytest.fixture
def inputs(tokenizer):
    return tokenizer(texts(ROWS), padding=True, return_tensors="pt")


