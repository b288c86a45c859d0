"""Prefixes ahead of their first request: long ones in chunks, with a progress bar; the handle as a person sees it."""

import logging
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging as transformers_logging

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

ROWS = prompts(100, (5, 5, 5))
IDS = ROWS["input_ids"][1, :100]
# Plain; windows and sinks; softcap; latents; layers that reuse another's KV; attention code of their own.
CHUNKED = ["llama", "gpt_oss", "gemma2", "deepseek_v3", "gemma3n_text", "bloom", "llama4_text", "gptj"]


def patched(model_type="llama", **options):
    return relay_hf.patch_model(tiny_model(model_type), policy="always", trust=[""], **options)  # `Widths` is a mode


class Widths(TorchDispatchMode):
    """Tokens that go through the model at once, forward by forward; `at_most` forwards, then an interrupt."""

    def __init__(self, model, at_most=99):
        super().__init__()
        self.table, self.at_most, self.found = model.get_input_embeddings().weight.data_ptr(), at_most, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.embedding.default and args[0].data_ptr() == self.table:
            if len(self.found) == self.at_most:
                raise KeyboardInterrupt
            self.found.append(args[1].shape[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("model_type", CHUNKED)
def test_chunks_of_a_prefix_give_what_all_of_it_gives(model_type):
    model = patched(model_type)
    with Widths(model) as widths:
        assert len(model.relay.warm(IDS, prefill_chunk_size=30)) == 100
    assert widths.found == [1, 30, 30, 30, 10]
    found = generate(model, ROWS)
    assert model.relay.last.prefix_tokens_reused == 100
    assert torch.equal(found, generate(tiny_model(model_type), ROWS))


def test_models_with_recurrent_layers_take_all_at_once():
    model = patched("falcon_h1")
    with Widths(model) as widths:
        model.relay.warm(IDS, prefill_chunk_size=30)
    assert widths.found == [100]


def test_one_token_more_is_not_put_behind_a_state():
    """Nemotron-H has other code for a single token, and leaves another state behind it than its prefill does."""
    models = [patched("nemotron_h") for _ in range(2)]
    models[1].relay.warm(IDS[:30])
    states = []
    for model in models:
        layers = model.relay.warm(IDS[:31]).run.layers
        states.append([tensor for layer in layers if layer.state is not None for tensor in layer.state.tensors()])
    assert states[0]
    assert all(map(torch.equal, *states))


def test_chunks_go_on_from_what_is_kept():
    model = patched()
    model.relay.warm(IDS[:50])
    with Widths(model) as widths:
        model.relay.warm(IDS, prefill_chunk_size=30)
        model.relay.warm(IDS, prefill_chunk_size=30)
    assert widths.found == [1, 30, 20]


def test_an_interrupt_loses_the_chunk_that_it_meets_and_no_other():
    model = patched()
    with pytest.raises(KeyboardInterrupt), Widths(model, at_most=3):
        model.relay.warm(IDS, prefill_chunk_size=30)
    assert [len(prefix) for prefix in model.relay.prefixes] == [60]
    with Widths(model) as widths:
        model.relay.warm(IDS, prefill_chunk_size=30)
    assert widths.found == [1, 30, 10]
    assert torch.equal(generate(model, ROWS), generate(tiny_model("llama"), ROWS))


@pytest.mark.parametrize("budget", [0, 0.9])
def test_a_prefix_that_will_not_fit_is_refused_before_anything_leaves_for_it(budget):
    model = patched()
    size = model.relay.warm(IDS).nbytes
    model = patched(max_store_bytes=int(size * budget))
    if budget:
        model.relay.warm(IDS[50:])
    before = model.relay.prefixes
    with pytest.raises(relay_hf.RelayError, match=f"takes {size} bytes, more than"), Widths(model) as widths:
        model.relay.warm(IDS, prefill_chunk_size=30)
    assert widths.found == [1]  # of which a token is asked how large it is
    assert model.relay.prefixes == before


def test_what_is_pinned_counts_for_a_long_prefix_too():
    model = patched()
    size = model.relay.warm(IDS).nbytes
    model = patched(max_store_bytes=size * 3 // 2)
    pinned, other = model.relay.warm(IDS[40:], pin=True), model.relay.warm(IDS[50:80])
    with pytest.raises(relay_hf.RelayError, match="of which pinned prefixes take a part"):
        model.relay.warm(IDS, prefill_chunk_size=30)
    assert set(model.relay.prefixes) == {pinned, other}
    pinned.pinned = False
    assert model.relay.warm(IDS, prefill_chunk_size=30, pin=True).pinned


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_no_such_chunk(size, error):
    with pytest.raises(error, match="prefill_chunk_size must be"):
        patched().relay.warm(IDS, prefill_chunk_size=size)


@contextmanager
def no_progress_bars():
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def test_a_progress_bar_is_shown_where_it_is_asked_for_or_somebody_looks(capsys, monkeypatch):
    model = patched()

    def shown(**options):
        model.relay.clear()
        model.relay.warm(IDS, prefill_chunk_size=30, **options)
        return capsys.readouterr().err

    assert "100/100" in shown(progress=True)
    assert not shown()
    assert not shown(progress=False)
    with no_progress_bars():
        assert not shown(progress=True)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr.isatty", lambda: True)
        assert "100/100" in shown()
    monkeypatch.setattr("sys.stderr", None)  # as in a process without one
    assert not shown()


def test_nothing_is_printed_or_logged_unless_it_is_asked_for(capfd, caplog):
    model = patched()
    generate(model, ROWS)
    model.relay.warm(IDS)
    assert capfd.readouterr() == ("", "")
    caplog.set_level(logging.INFO, logger="relay_hf")
    generate(model, ROWS)
    assert [record.getMessage() for record in caplog.records] == [repr(model.relay.last)]


def test_a_prefix_that_is_too_short_to_serve_is_told(caplog):
    model = patched(min_prefix_length=30)
    model.relay.warm(IDS[:30])
    assert not caplog.records
    model.relay.clear()
    for _ in range(2):
        model.relay.warm(IDS[:29])
    said = (
        "relay_hf: a prefix of 29 tokens serves no call, because min_prefix_length is 30. Warm a longer one, or lower "
    )
    said += "it by patch_model(model, min_prefix_length=29)."
    assert [record.getMessage() for record in caplog.records] == [said, said]
    generate(model, ROWS)
    assert model.relay.last.prefix_tokens_reused == 0  # it is true
    model = patched(min_prefix_length=29)
    model.relay.warm(IDS[:29])
    generate(model, ROWS)
    assert model.relay.last.prefix_tokens_reused == 29


def test_the_handle_says_what_it_holds_in_a_line_and_in_tables():
    model = patched()
    assert "kept 0 prefixes, 0 B of 1.00 GiB; 0 calls" in repr(model.relay)
    assert model.relay._hooks.store._tree is None  # its budget is that of the device that the model is on by then
    generate(model, ROWS)
    model.relay.warm(IDS, pin=True)
    line, tables = repr(model.relay), model.relay._repr_html_()
    assert "\n" not in line
    assert "1 call, 1 relayed, 200 prompt tokens saved; last: RelayReport(relayed" in line
    assert tables.count("<tr>") == tables.count("</tr>") == 5 + 1 + len(model.relay.prefixes)
    assert "<td>yes</td>" in tables
    assert "stock&#x27;s" in tables  # escaped
