"""What patch_model is given in place of a model that generates: each error says what to pass instead."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

import relay_hf
from relay_hf.model.generating import generating_model
from tests.support.tiny_models import tiny_model

MODEL = tiny_model("llama")
HOLDS = "It holds a LlamaForCausalLM: pass its "


class Around(nn.Module):
    """A module that holds others by the names given."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Peft(Around):
    def get_base_model(self):
        return self.base_model


def parallel(model):
    """As DistributedDataParallel holds it, of which one needs a process group."""
    return nn.DataParallel(model)


INSTEAD = {
    "data parallel": (parallel(MODEL), "got DataParallel. " + HOLDS + r"\.module\."),
    "data parallel around torch.compile": (parallel(torch.compile(MODEL)), HOLDS + r"\.module\."),
    "data parallel around peft": (parallel(Peft(base_model=MODEL)), HOLDS + r"\.module\."),
    "torch.compile around data parallel": (torch.compile(parallel(MODEL)), HOLDS + r"\.module\."),
    "a value head": (Around(pretrained_model=MODEL, v_head=nn.Linear(32, 1)), HOLDS + r"\.pretrained_model\."),
    "a sequence of modules": (nn.Sequential(Around(auto_model=MODEL)), HOLDS + r"\.get_submodule\('0.auto_model'\)\."),
    "a pipeline": (SimpleNamespace(task="text-generation", model=MODEL), HOLDS + r"\.model\."),
    "a class": (LlamaForCausalLM, r"got the class LlamaForCausalLM. Pass a model: LlamaForCausalLM.from_pretrained"),
    "an automatic class": (AutoModelForCausalLM, "Pass a model: AutoModelForCausalLM.from_pretrained"),
    "a name": ("org/name", r"got str. Load it first: AutoModelForCausalLM.from_pretrained\('org/name'\)\."),
    "a path": (Path("folder"), r"Load it first: AutoModelForCausalLM.from_pretrained\('folder'\)\."),
    "no head": (MODEL.model, "got LlamaModel. It has no head that generates: load it with AutoModelForCausalLM"),
    "no head, in peft's wrapper": (Peft(base_model=MODEL.model), "got Peft. It has no head that generates"),
    "a module": (nn.Linear(1, 1), "A model of your own can call relay_hf.ops.relay_attention"),
    "a number": (3, r"got int. Load one with AutoModelForCausalLM.from_pretrained"),
    "another class": (int, r"got the class int. Load one with AutoModelForCausalLM.from_pretrained"),
}


@pytest.mark.parametrize("what", INSTEAD)
@pytest.mark.parametrize("function", [relay_hf.patch_model, relay_hf.unpatch_model])
def test_the_error_says_what_to_pass(function, what):
    given, words = INSTEAD[what]
    with pytest.raises(TypeError, match=f"model must be a Transformers model that generates text .*{words}"):
        function(given)


def test_a_tokenizer_is_no_model():
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(TypeError, match="Pass the model that it belongs to"):
        relay_hf.patch_model(PreTrainedTokenizerFast(tokenizer_object=words))


def test_what_the_error_names_can_be_passed():
    for what in ("data parallel around torch.compile", "data parallel around peft"):
        wrapper, _ = INSTEAD[what]
        assert generating_model(wrapper.module) is MODEL


def test_wrappers_that_generate_are_unwrapped_in_any_order():
    assert generating_model(torch.compile(Peft(base_model=MODEL))) is MODEL
    assert generating_model(Peft(base_model=torch.compile(MODEL))) is MODEL
