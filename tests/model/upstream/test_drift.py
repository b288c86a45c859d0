"""A release in which a name has changed is refused by the name of the fact; a class of the user's is left to stock."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import DynamicCache, GenerationMixin, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

import relay_hf
from relay_hf.model.upstream import drift, models
from relay_hf.model.upstream.fact import Fact
from relay_hf.testing import prompts
from tests.support.generating import CACHE
from tests.support.sweeps import all_but_swept
from tests.support.tiny_models import tiny_model

ROOT = Path(relay_hf.__file__).parents[1]


class OwnForward(LlamaForCausalLM):
    """A user's class, whose forward calls its cache by a name of its own."""

    def forward(self, input_ids, kv: DynamicCache | None = None, **kwargs):
        kwargs.pop(CACHE, None)
        return super().forward(input_ids, **kwargs)


def test_a_class_of_the_users_is_left_to_stock_and_not_refused():
    stock, ours = (OwnForward(tiny_model("llama").config).eval() for _ in range(2))
    ours.load_state_dict(stock.state_dict())
    relay_hf.patch_model(ours, policy="always")
    inputs = prompts(20, (3, 5))
    assert torch.equal(*(model.generate(**inputs, max_new_tokens=3, pad_token_id=0) for model in (stock, ours)))
    assert not ours.relay.last.relayed
    assert ours.relay.last.reason == "generate() uses no cache here, in place of a plain DynamicCache"


class OldName(LlamaForCausalLM):
    """A user's class that was written before 5.24."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        if past_key_values is not None:
            kwargs[CACHE] = past_key_values
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


def test_a_class_that_has_the_caches_old_name_and_passes_the_rest_on_is_relayed():
    stock, ours = (OldName(tiny_model("llama").config).eval() for _ in range(2))
    ours.load_state_dict(stock.state_dict())
    relay_hf.patch_model(ours, policy="always")
    inputs = prompts(20, (3, 5))
    assert torch.equal(*(model.generate(**inputs, max_new_tokens=3, pad_token_id=0) for model in (stock, ours)))
    assert ours.relay.last.relayed, ours.relay.last


@pytest.mark.parametrize(
    "where", [(GenerationMixin, "generate"), (DynamicLayer, "update"), (GenerationMixin, "_sample")]
)
def test_somebody_elses_code_in_the_place_of_transformers_is_no_drift(where, monkeypatch):
    owner, name = where
    stocks = getattr(owner, name)
    monkeypatch.setattr(drift, "_held", False)
    monkeypatch.setattr(owner, name, lambda self, *args, **kwargs: stocks(self, *args, **kwargs))
    assert drift.changed() is None
    assert hasattr(relay_hf.patch_model(tiny_model("llama")), "relay")


def test_what_has_changed_is_looked_at_again(monkeypatch):
    monkeypatch.setattr(drift, "_held", False)
    with monkeypatch.context() as patch:
        patch.setattr(drift, "facts", lambda: [Fact("a thing", "this", lambda: "that")])
        assert drift.changed() == "a thing: expected this, found that"
    assert drift.changed() is None


def test_a_cache_of_another_kind_among_the_arguments_is_no_drift():
    """Of Parakeet's decoder."""
    assert "decoder_cache" in models.forward_inputs(transformers.ParakeetForTDT)
    assert drift.changed_in(transformers.ParakeetForTDT) is None


FAKES = {
    "the cache argument": (
        {"models/llama/modeling_llama.py": [(r"\bcache\b" if CACHE == "cache" else CACHE, "kv_store")]},
        rf"the cache among the arguments of LlamaForCausalLM\.forward: expected '{CACHE}', found 'kv_store'",
    ),
    "a parameter of the prefill": (
        {"generation/utils.py": [(r"is_first_iteration: bool = True,\n    \):", "first_pass: bool = True,\n    ):")]},
        r"the arguments of GenerationMixin\._prefill: expected .*'is_first_iteration'\], found .*'first_pass'\]",
    ),
    "the attention function's signature": (
        {"integrations/sdpa_attention.py": [("scaling: float", "scale: float")]},
        r"the arguments of transformers\.integrations\.sdpa_attention\.sdpa_attention_forward: "
        r"expected .*'scaling'.*found .*'scale'",
    ),
    "the cache among a model's outputs": (
        {"modeling_outputs.py": [(rf"^    {CACHE}: Cache", "    kv_store: Cache")]},
        rf"the name of the cache in a model's outputs: expected {CACHE}, found nothing of that name",
    ),
    "a name that is imported": (
        {"masking_utils.py": [("ALL_MASK_ATTENTION_FUNCTIONS", "MASKS_BY_NAME")]},
        r"what transformers\.masking_utils has: cannot import name 'ALL_MASK_ATTENTION_FUNCTIONS'",
    ),
    "a kind of RoPE": (
        {"modeling_rope_utils.py": [('"dynamic": ', '"elastic": ')]},
        r"the kinds of RoPE, .*: expected \['dynamic', .*found \['elastic', ",
    ),
    "the loop of greedy search": (
        {
            "generation/utils.py": [
                ('GenerationMode.GREEDY_SEARCH: "_sample"', 'GenerationMode.GREEDY_SEARCH: "_greedy"')
            ]
        },
        r"the decoding loops of generate\(\)'s modes: expected .*found \['_greedy', ",
    ),
}
PATCH = """
import relay_hf, transformers
assert "fake" in transformers.__file__
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=9))
try:
    relay_hf.patch_model(model)
except relay_hf.RelayError as error:
    print(error)
    assert "relay" not in vars(model)
"""


def fake_release(folder, changes):
    """A folder with a copy of the installed Transformers, some text replaced; what is not changed is linked."""
    folder = folder / "fake"
    folder.mkdir()
    installed, copy = Path(transformers.__file__).parent, folder / "transformers"
    changed = {installed / name: edits for name, edits in changes.items()}

    def link(source, target):
        if any(source in path.parents for path in changed):
            target.mkdir()
            for each in source.iterdir():
                link(each, target / each.name)
        elif source in changed:
            text = source.read_text()
            for pattern, to in changed[source]:
                text, count = re.subn(pattern, to, text, flags=re.MULTILINE)
                assert count, f"{source.name} has no {pattern}"
            target.write_text(text)
        elif source.name != "__pycache__":
            target.symlink_to(source)

    link(installed, copy)
    return folder


@pytest.mark.parametrize("what", all_but_swept(FAKES, kept=2))
def test_a_release_with_a_changed_name_is_refused_by_the_name_of_the_fact(what, tmp_path):
    changes, said = FAKES[what]
    folder = fake_release(tmp_path, changes)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PATCH],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout
    assert f"Installed is {transformers.__version__}; relay_hf supports >=5.17,<6" in done.stdout
    shutil.rmtree(folder)
