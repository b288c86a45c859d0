"""What an earlier version has pickled or saved still loads: its classes had other names, in other modules."""

import importlib
import pickle
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.model.device import ComputeContext
from relay_hf.reasons import Reason
from relay_hf.testing import prompts
from tests.support.generating import CACHE
from tests.support.tiny_models import tiny_model

# Written by the version that had its modules in one folder: a patched tiny model of Llama with one kept prefix, the
# cache that its generate() returned, the prefix, a file of prefixes, and the tokens.
WRITTEN = Path(__file__).parent / "pickles"
INPUTS = prompts(prefix=40, own=[3, 5, 4])


def written(name):
    return pickle.loads((WRITTEN / f"{name}.pkl").read_bytes())


def generated(model, **options):
    return model.generate(**INPUTS, max_new_tokens=4, do_sample=False, **options)


def test_a_patched_model_is_loaded_and_relays():
    model = written("model")
    assert torch.equal(generated(model), torch.load(WRITTEN / "tokens.pt"))
    assert model.relay.last.relayed
    assert model.relay.stats().calls == 2  # it goes on counting
    relay_hf.unpatch_model(model)
    assert "relay" not in vars(model)


def test_a_returned_cache_is_loaded_and_goes_on_relayed():
    model, cache = relay_hf.patch_model(tiny_model("llama"), policy="always"), written("cache")
    assert cache.context[:3] == ComputeContext.of(model)[:3]
    cache.context = ComputeContext.of(model)  # another test of this process may have set how PyTorch computes
    tokens = torch.load(WRITTEN / "tokens.pt")
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, 4), value=1)
    again = model.generate(tokens, attention_mask=mask, max_new_tokens=3, do_sample=False, **{CACHE: cache})
    assert (model.relay.last.relayed, model.relay.last.reason) == (True, "a returned cache, continued")
    stock = DynamicCache(config=model.config)
    expected = relay_hf.unpatch_model(model).generate(
        tokens, attention_mask=mask, max_new_tokens=3, do_sample=False, **{CACHE: stock}
    )
    assert torch.equal(again, expected)


def test_a_kept_prefix_is_loaded():
    prefix = written("prefix")
    assert isinstance(prefix, relay_hf.prefix.KeptPrefix)
    assert torch.equal(prefix.ids, INPUTS["input_ids"][1, :40])
    assert len(prefix) == prefix.run.length == 40


def test_a_file_of_prefixes_is_loaded():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    assert [len(prefix) for prefix in model.relay.load(WRITTEN / "prefixes.safetensors")] == [40]
    assert torch.equal(generated(model), torch.load(WRITTEN / "tokens.pt"))
    assert model.relay.last.prefix_tokens_reused == 40


@pytest.mark.parametrize("old", relay_hf._MOVED)
def test_every_class_that_has_moved_is_found_where_it_was(old):
    home, names = relay_hf._MOVED[old]
    found, now = (importlib.import_module(name) for name in (old, f"relay_hf.{home}"))
    assert {name: getattr(found, name) for name in names} == {name: getattr(now, new) for name, new in names.items()}
    assert all(isinstance(getattr(found, name), type) for name in names)


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"relay_hf\.nothing"):
        pickle.loads(b"crelay_hf.nothing\nNothing\n.")


def test_a_reason_is_pickled_by_its_name_so_that_its_words_may_change():
    reason = Reason.SHORT_PREFIX.of(tokens=3, least=16)
    again = pickle.loads(pickle.dumps(reason))
    assert (again, again.code, type(again)) == (reason, "short_prefix", type(reason))
    assert again.reason is Reason.SHORT_PREFIX
    assert b"fewer than min_prefix_length={least}" not in pickle.dumps(Reason.SHORT_PREFIX)
