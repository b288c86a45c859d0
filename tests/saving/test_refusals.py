"""A file that is damaged, of another format, or of another model is refused by name, and nothing of it is kept."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

import relay_hf
from relay_hf import PrefixFileError, RelayError
from relay_hf.model.device import store_key
from relay_hf.model.modules import all_modules
from relay_hf.prefix import PrefixEntry, write
from relay_hf.prefix import file as prefix_file
from relay_hf.prefix.file_tensors import rebuilt
from relay_hf.testing import prompts
from tests.support.model_snapshot import snapshot
from tests.support.tiny_models import tiny_model

from .common import IDS, PREFIX, patched, saved


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "p"
    saved(path)
    return path


def refused(model, path, words, error=PrefixFileError):
    with pytest.raises(error, match=words) as caught:
        model.relay.load(path)
    assert str(path) in str(caught.value)
    assert not model.relay.prefixes


def one_weight_changed():
    model = patched()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.view(-1)[777] += 1e-3
    return model


def rounded_frequencies():
    """The weights of another dtype and back are the same, if they had no more digits; RoPE's frequencies are not."""
    model = patched()
    for buffer in model.buffers():
        buffer.copy_(buffer.bfloat16().float())
    return model


def edited_frequencies():
    model = patched()
    model.model.rotary_emb.inv_freq *= 0.25
    return model


def another_activation():
    model = patched()
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.ReLU().eval()
    return model


class Doubled(LlamaMLP):
    def forward(self, states):
        return 2 * super().forward(states)


def another_class():
    model = relay_hf.patch_model(patched(), trust=["model.layers.1.mlp"])
    model.model.layers[1].mlp.__class__ = Doubled
    return model


def another_setting():
    model = patched()
    model.model.layers[0].self_attn.scaling *= 3
    return model


MODELS = {
    "other buffers: model.rotary_emb.inv_freq is": rounded_frequencies,
    "other buffers: model.rotary_emb.inv_freq is .* here": edited_frequencies,
    "other modules, or other settings of them": another_activation,
    "other modules, or other settings of them: ": another_class,
    "other modules, or other settings of them: it is": another_setting,
    "other weights": one_weight_changed,
    "other weights of another seed": lambda: patched(seed=1),
    "another type of model: it is 'llama' in the file and 'mistral' here": lambda: patched("mistral"),
    "another configuration: rope_parameters.rope_theta is": lambda: patched(
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    ),
    "another configuration: rms_norm_eps is": lambda: patched(rms_norm_eps=1e-3),
    "another dtype: it is 'torch.float32' in the file and 'torch.float64' here": lambda: patched().double(),
}


@pytest.mark.parametrize("words", MODELS)
def test_another_model(original, words):
    refused(MODELS[words](), original, words.removesuffix(" of another seed"))


def test_another_autocast(original):
    with torch.autocast("cpu", torch.bfloat16):
        refused(patched(), original, "another autocast dtype: it is None in the file and 'torch.bfloat16' here")


def test_where_it_came_from_and_how_text_is_cut_make_no_other_model(original):
    model = patched()
    model.config._name_or_path, model.config.eos_token_id, model.config.architectures = "elsewhere", 7, ["X"]
    model.config.output_hidden_states = True
    assert len(model.relay.load(original)) == 1


def test_every_cut(original, tmp_path):
    data, model = original.read_bytes(), patched()
    for length in (0, 1, 7, 8, 200, len(data) // 2, len(data) - 1):
        (tmp_path / "p").write_bytes(data[:length])
        refused(model, tmp_path / "p", "is damaged")


def test_a_flipped_bit_anywhere(original, tmp_path):
    data, model = original.read_bytes(), patched()
    for place in range(0, len(data), len(data) // 300):
        (tmp_path / "p").write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 7]) + data[place + 1 :])
        refused(model, tmp_path / "p", "or warm the prefixes again and save them")


def changed_record(original, path, change):
    """The file with another record, that has its right digest: what a stranger would write."""
    tensors = load_file(original)
    with safe_open(original, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["relay_hf"])
    change(record, tensors)
    text = json.dumps(record)
    save_file(tensors, path, {"relay_hf": text, "relay_hf.sha256": prefix_file._sha256(text)})


def set_in(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(record, tensors):
        for key in keys:
            record = record[key]
        record[last] = value

    return change


def drop_tensor(record, tensors):
    del tensors["0.layers.1.value"]


def add_tensor(record, tensors):
    tensors["../../0.evil"] = torch.zeros(1)


def drop_ids(record, tensors):
    del tensors["0.ids"]


RECORDS = {
    "is of format 2, by a newer relay_hf; this version reads format 1": set_in("format", 2),
    "is of format None": set_in("format", None),
    "another version of Transformers": set_in("model", "transformers", "5.0.0"),
    "other weights: it is 'x' in the file": set_in("model", "weights", "x"),
    "another RoPE: it is 7 in the file and None here": set_in("model", "rope_limit", 7),
    "is of format 'x{20,30}\\.\\.\\.x{20,30}'; ": set_in("format", "x" * 10**5),
    "a header that takes far more than its tensors": set_in("model", "torch", "x" * 2**25),
    "other buffers": set_in("model", "buffers", 7),
    "a record that makes no sense": set_in("prefixes", 7),
    "a record that makes no sense.*extends 0": set_in("prefixes", 0, "parent", 0),
    "a record that makes no sense.*extends -1": set_in("prefixes", 0, "parent", -1),
    "a record that makes no sense.*extends '../x'": set_in("prefixes", 0, "parent", "../x"),
    "lacks the tensor '0.layers.1.value'": drop_tensor,
    "does not have the tensors of its prefixes: '../../0.evil'": add_tensor,
    "has no token ids '0.ids'": drop_ids,
    "'0.layers.0.key' is not what was written": set_in("sha256", "0.layers.0.key", "x"),
}


@pytest.mark.parametrize("words", RECORDS)
def test_a_record_that_does_not_fit(original, tmp_path, words):
    changed_record(original, tmp_path / "p", RECORDS[words])
    refused(patched(), tmp_path / "p", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:, :, :4].contiguous(), r"as torch.float32 \[\d, 20, 4\], where this model keeps torch.float32"),
        (lambda t: t[:, :19].contiguous(), r"\[\d, 19, 8\], where this model keeps"),
        (lambda t: t.half(), "as torch.float16"),
        (lambda t: t.to(torch.int8), "as I8"),
    ],
)
def test_tensors_of_other_shapes_and_dtypes_with_right_digests(original, tmp_path, change, words):
    model = saved(tmp_path / "q")
    nodes, stored, _ = model.relay._hooks.store.stored(
        all_modules(model), model.get_input_embeddings(), store_key(model), None
    )
    run = rebuilt(stored[0].kv, lambda name, tensor, _: change(tensor) if name == "layers.0.key" else tensor)
    with safe_open(original, "pt") as file:
        identity = json.loads(file.metadata()["relay_hf"])["model"]
    write(tmp_path / "p", identity, [PrefixEntry(stored[0].ids, run)])
    refused(patched(), tmp_path / "p", words)
    assert len(nodes) == 1


def test_ids_that_the_model_does_not_have(original, tmp_path):
    model = saved(tmp_path / "q")
    (prefix,) = model.relay.prefixes
    with safe_open(original, "pt") as file:
        identity = json.loads(file.metadata()["relay_hf"])["model"]
    write(tmp_path / "p", identity, [PrefixEntry(IDS + 10**6, prefix.run)])
    refused(patched(), tmp_path / "p", "has token ids that this model does not take .*must be token ids from 0")


@pytest.mark.parametrize("change", [lambda data: data[:-5], lambda data: data + b"x"], ids=["cut", "longer"])
def test_a_file_that_does_not_end_with_its_tensors_says_how_long_it_is(original, tmp_path, change):
    data = change(original.read_bytes())
    (tmp_path / "p").write_bytes(data)
    refused(patched(), tmp_path / "p", rf"is damaged, or no safetensors file \(.*; it has {len(data)} bytes\)")


class Explodes:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_other_files(tmp_path):
    model = patched()
    torch.save({"x": Explodes()}, tmp_path / "torch")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Explodes()))
    (tmp_path / "text").write_text("a file of words, and nothing else")
    for name in ("torch", "pickle", "text"):
        refused(model, tmp_path / name, "is damaged, or no safetensors file")
        refused(model, tmp_path / name, "Give a file that was saved of this model, or warm the prefixes again")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights")
    refused(model, tmp_path / "weights", "none that relay_hf wrote")
    for absent in (tmp_path / "absent", tmp_path / "text" / "absent"):
        with pytest.raises(FileNotFoundError, match=f"there is no {absent}. Check the path, or save prefixes there fi"):
            model.relay.load(absent)
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is none: it is a folder. Give the path of the file"):
        model.relay.load(tmp_path)


def test_more_than_the_budget(original):
    model = relay_hf.patch_model(patched(), max_store_bytes=1000)
    refused(model, original, "more than the store's budget of 1000: raise max_store_bytes", RelayError)


def test_token_ids_count_where_nothing_else_grows_with_them(tmp_path):
    size = sum(prefix.nbytes for prefix in saved(tmp_path / "p", "mamba").relay.prefixes)
    for missing in (1, 0):
        model = relay_hf.patch_model(patched("mamba"), max_store_bytes=size - missing)
        if missing:
            refused(model, tmp_path / "p", f"holds {size} bytes, more than the store's budget", RelayError)
        else:
            assert len(model.relay.load(tmp_path / "p")) == 1
    assert size == sum(tensor.nbytes for tensor in model.relay.prefixes[0].run.layers[0].tensors()) * 2 + 16 * PREFIX


def test_a_full_store_is_loaded_into_one_of_its_size(original):
    size = patched().relay.warm(IDS).nbytes
    model = relay_hf.patch_model(patched(), max_store_bytes=size)
    assert len(model.relay.load(original)) == 1


def test_all_of_a_file_or_nothing_beside_what_is_pinned(tmp_path):
    model = patched()
    for seed in (1, 2):
        model.relay.warm(prompts(40, (1,), seed=seed)["input_ids"][0], pin=True)
    size = sum(prefix.nbytes for prefix in model.relay.save(tmp_path / "p"))
    big = prompts(300, (1,), seed=3)["input_ids"][0]
    large = patched().relay.warm(big).nbytes
    for missing in (1, 0):
        other = relay_hf.patch_model(patched(), max_store_bytes=large + size - missing)
        other.relay.warm(big, pin=True)
        if missing:
            with pytest.raises(RelayError, match="pinned prefixes leave 1 too few"):
                other.relay.load(tmp_path / "p")
            assert [len(prefix) for prefix in other.relay.prefixes] == [301]
        else:
            loaded = other.relay.load(tmp_path / "p")
            assert set(loaded) < set(other.relay.prefixes)
            assert all(prefix.pinned for prefix in loaded)
            assert set(other.relay.load(tmp_path / "p")) == set(loaded)  # nothing new, so it fits


def test_a_model_whose_prefixes_are_not_kept(original):
    model = patched().train()
    with pytest.raises(RelayError, match="training mode"):
        model.relay.load(original)


def test_nothing_to_save(tmp_path):
    model = patched()
    with pytest.raises(RelayError, match="nothing to save"):
        model.relay.save(tmp_path / "p")
    prefix = model.relay.warm(IDS)
    with pytest.raises(ValueError, match="must name one at least"):
        model.relay.save(tmp_path / "p", [])
    with pytest.raises(IsADirectoryError, match="must be that of a file"):
        model.relay.save(tmp_path)
    for folder in (tmp_path / "absent", Path(__file__)):
        with pytest.raises(FileNotFoundError, match=f"must be in a folder that exists; there is no {folder}"):
            model.relay.save(folder / "p")
    with torch.no_grad():
        model.lm_head.weight += 1  # what was kept is stale now, and must not get the new weights' digest
    with pytest.raises(ValueError, match=f"{PREFIX} tokens.*is not kept any more"):
        model.relay.save(tmp_path / "p", [prefix])
    with pytest.raises(RelayError, match="nothing to save"):
        model.relay.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_weights_that_change_while_they_are_read(tmp_path):
    model = patched()

    class TrainedMeanwhile(type(model.config)):
        def to_json_string(self, use_diff=True):
            with torch.no_grad():
                model.lm_head.weight += 1
            return super().to_json_string(use_diff)

    model.config.__class__ = TrainedMeanwhile
    model.relay.warm(IDS)
    with pytest.raises(RelayError, match="the model changed while its weights were read"):
        model.relay.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_is_no_json(tmp_path):
    model = patched()
    model.config.strange = object()
    model.relay.warm(IDS)
    with pytest.raises(RelayError, match="can't be written as JSON"):
        model.relay.save(tmp_path / "p")


def test_a_description_that_no_reader_would_take_is_not_written(tmp_path):
    model = patched()
    model.config.long = "x" * 2**25
    model.relay.warm(IDS)
    with pytest.raises(PrefixFileError, match="was not written: what describes its tensors takes far more"):
        model.relay.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_prefix_of_another_model(tmp_path):
    model, other = patched(), patched()
    model.relay.warm(IDS)
    with pytest.raises(ValueError, match="is not kept any more"):
        model.relay.save(tmp_path / "p", [other.relay.warm(IDS.flip(0))])


def test_saving_and_loading_leave_no_trace_on_the_model(original, tmp_path):
    model = tiny_model("llama")
    before = snapshot(model)
    with relay_hf.patched(model):
        model.relay.load(original)
        model.relay.save(tmp_path / "p")
    assert snapshot(model) == before


def test_a_record_with_a_name_twice(original, tmp_path):
    """One reader takes the first, another the last."""
    tensors = load_file(original)
    with safe_open(original, "pt") as file:
        text = '{"prefixes": [], ' + file.metadata()["relay_hf"][1:]
    save_file(tensors, tmp_path / "p", {"relay_hf": text, "relay_hf.sha256": prefix_file._sha256(text)})
    refused(patched(), tmp_path / "p", "has a record that can't be read")


@pytest.mark.parametrize("name", ["x" * 10**5, "\x1b[2J\nall is well"], ids=["long", "of two lines"])
def test_an_error_is_a_line_whatever_the_file_has(original, tmp_path, name):
    changed_record(original, tmp_path / "p", lambda record, tensors: record["sha256"].update({name: "x"}))
    changed_record(original, tmp_path / "q", lambda record, tensors: record["model"]["config"].update({name: "x"}))
    for path in (tmp_path / "p", tmp_path / "q"):
        with pytest.raises(PrefixFileError) as caught:
            patched().relay.load(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(OSError, match=f"must be that of a file; {tmp_path / name} is none"):
            patched().relay.load(tmp_path / name)
