"""What a report says: what is known of a call, in one line, in several, and in a notebook."""

import dataclasses
import inspect
import re

import pytest
import torch

import relay_hf
from relay_hf.kernels import Segment
from relay_hf.prefix import KeptPrefix
from relay_hf.report import Explanation, RelayReport, RelayStats
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
TOKENS = int(INPUTS["attention_mask"].sum())
UNKNOWN = ("kv_bytes", "kv_bytes_reserved", "kv_bytes_stock")


def patched(policy="always", **options):
    return relay_hf.patch_model(tiny_model("llama"), policy=policy, **options)


def known(report):
    names = ("rows", "prefix_length", "levels", "prompt_tokens_computed")
    return tuple(getattr(report, name) for name in names)


REFUSED = {
    "short_prefix": ({"min_prefix_length": 21}, {}, (4, 20, 0, TOKENS)),
    "costs_more": ({"policy": "auto"}, {}, (4, 20, 1, TOKENS)),
    "policy_off": ({"policy": "off"}, {}, (4, None, None, TOKENS)),
    "without_cache": ({}, {"use_cache": False}, (4, None, None, TOKENS)),
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_call_that_is_left_to_stock_keeps_what_is_known(code):
    patch, options, expected = REFUSED[code]
    model = patched(**patch)
    said = model.relay.explain(**INPUTS, max_new_tokens=4, **options)
    generate(model, INPUTS, **options)
    for report in (said, model.relay.last):
        assert (report.relayed, report.reason_code) == (False, code)
        assert known(report) == expected
        assert [getattr(report, name) for name in UNKNOWN] == [None, None, None]
        assert (report.prefix_tokens_reused, report.prompt_tokens_saved) == (0, 0)
    assert (said.graph_steps, model.relay.last.graph_steps) == (None, 0)


@pytest.mark.parametrize("own", [(3, 3), (3, 7)])
def test_embeddings_in_the_place_of_ids_are_counted(own):
    """Of rows without padding Transformers hands no mask on."""
    model, inputs = patched(), prompts(20, own)
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach()
    model.generate(inputs_embeds=embedded, attention_mask=inputs["attention_mask"], max_new_tokens=2)
    assert model.relay.last.reason_code == "input_given"
    assert known(model.relay.last) == (2, None, None, 40 + sum(own))


def test_what_the_cost_model_expected_is_said_with_its_sign():
    model = patched("auto")
    generate(model, INPUTS)
    report = model.relay.last
    assert report.expected_saving_seconds < 0
    milliseconds = re.search(r"cost (\d+) ms more", report.reason).group(1)
    assert round(-report.expected_saving_seconds * 1e3) == int(milliseconds)
    assert "\n  expected saving: -0.0" in str(report)
    model = patched("auto")
    model.generate(**prompts(4000, (3, 7, 1, 5)), max_new_tokens=2)
    assert model.relay.last.relayed
    assert model.relay.last.expected_saving_seconds > 0
    assert "<th>expected saving</th><td>0." in model.relay.last._repr_html_()
    model = patched("always")
    generate(model, INPUTS)
    assert model.relay.last.expected_saving_seconds is None  # nobody asked


def test_a_call_that_raises_before_its_prefill_knows_no_figures():
    model = patched()
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(**INPUTS, max_new_tokens=-1)
    assert model.relay.last.reason_code == "raised_in_call"
    assert known(model.relay.last) == (None, None, None, None)
    assert model.relay.stats().prompt_tokens_computed == 0


def test_a_prefill_that_fails_keeps_what_was_decided(monkeypatch):
    model = patched()

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("relay_hf.generation.prefill_hook.lay_out", fail)
    generate(model, INPUTS)
    assert model.relay.last.reason_code == "out_of_memory"
    assert known(model.relay.last) == (4, 20, 1, TOKENS)


def test_print_gives_lines_and_repr_one():
    model = patched()
    generate(model, INPUTS)
    report = model.relay.last
    assert "\n" not in repr(report)
    lines = str(report).splitlines()
    assert lines[:4] == [
        "relayed: the rows start alike",
        "  reason code: rows_alike",
        "  shared: 4 rows share 20 tokens (0 kept from before)",
        "  prompt tokens: 36 computed, 60 saved",
    ]
    assert max(map(len, lines)) < 100
    said = model.relay.explain(**INPUTS, max_new_tokens=4)
    assert repr(said).startswith("Explanation(would be relayed: a kept prefix; ")
    assert "\n" not in repr(said)
    assert str(said).splitlines()[-1] == "20 tokens, 4 rows (0-3), kept from before"
    generate(model, INPUTS, use_cache=False)
    assert str(model.relay.last).splitlines() == [
        "left to stock: use_cache=False",
        "  reason code: without_cache, because of the call",
        "  rows: 4",
        "  prompt tokens: 96 computed, 0 saved",
    ]


def test_a_notebook_gets_a_table_in_which_all_words_are_escaped():
    report = Explanation(False, "<b>bold</b>", rows=2, tree="<i>")
    shown = report._repr_html_()
    assert shown.startswith("<table><tr><th>would be left to stock</th><td>&lt;b&gt;bold&lt;/b&gt;</td></tr>")
    assert shown.endswith("<pre>&lt;i&gt;</pre>")


def test_a_report_of_an_earlier_version_is_loaded():
    report = RelayReport.__new__(RelayReport)
    vars(report).update(relayed=True, reason="a kept prefix", rows=2, prefix_length=20, kv_bytes=0, kv_bytes_stock=0)
    assert (report.reason_code, report.expected_saving_seconds) == ("", None)
    assert str(report).startswith("relayed: a kept prefix\n  shared: 2 rows share 20 tokens")


RECORDS = [RelayReport, Explanation, RelayStats, relay_hf.RelayConfig, Segment]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_each_field_of_a_public_record_is_described(record):
    inherited = {field.name for base in record.__mro__[1:-1] for field in dataclasses.fields(base)}
    fields = [field.name for field in dataclasses.fields(record) if field.name not in inherited]
    assert fields
    assert sorted(described(record)) == sorted(fields)


def test_each_field_of_a_kept_prefix_is_described():
    prefix = patched().relay.warm(INPUTS["input_ids"][1, :20])
    assert isinstance(prefix, KeptPrefix)
    known = {name for kind in KeptPrefix.__mro__[:-1] for name in described(kind)}
    assert set(vars(prefix)) <= known


def described(record):
    return re.findall(r"^    (\w+): ", inspect.getdoc(record).partition("Attributes:\n")[2], re.MULTILINE)
