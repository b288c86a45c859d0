"""Fixtures of the mode matrix."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from relay_hf.testing import VOCABULARY
from tests.support.foretold import ask_before_each_call

from .compare import FAMILIES, build_pair


@pytest.fixture(autouse=True)
def foretold(monkeypatch):
    """Each call of the matrix does what `explain` says ahead of it."""
    ask_before_each_call(monkeypatch, _may_differ)


def _may_differ(call, kwargs):
    """Where its prefill fails, and where healing has generated and kept something before."""
    reason = call.report.reason
    return reason.startswith("a relayed prefill raised") or ("token_healing" in kwargs and reason == "a kept prefix")


@pytest.fixture(params=FAMILIES)
def pair(request):
    """A stock model, and a patched copy of it."""
    return build_pair(request.param)


@pytest.fixture(params=FAMILIES)
def eager_pair(request):
    """A pair whose attention can return its weights."""
    return build_pair(request.param, attn_implementation="eager")


@pytest.fixture
def deprecations_unsaid():
    """For modes that are deprecated and still there: nothing is logged, so nothing raises."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity(before)


@pytest.fixture(scope="session")
def tokenizer():
    """One word a token id; words that start alike, for healing; the word that stop strings are measured against."""
    words = ["<pad>", "<s>", "</s>", "abcdef", *(f"w{token}" for token in range(4, VOCABULARY))]
    backend = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **specials)
