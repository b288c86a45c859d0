"""Windows and chunks: what a row sees of the prefix hangs on its own length, and on positions, not columns."""

from dataclasses import replace

import pytest

from relay_hf.attention import masks
from relay_hf.attention.mask_registry import MaskRegistry
from relay_hf.cache_utils import cache
from relay_hf.kernels import plan
from relay_hf.model.architectures import ARCHITECTURES
from relay_hf.testing import prompts

from .compare import assert_relayed, assert_untouched, assert_wrong, leave_out, pair

RAGGED = prompts(20, (3, 7, 1, 5))
EQUAL = prompts(20, (5, 5, 5))
SLIDING = ["mistral", "gemma2", "gpt_oss"]
# Tokens: shorter than any own part, within the prefix, just its length, between the rows' lengths, longer than the
# prompt and crossed by what is generated, never reached.
WINDOWS = [3, 12, 20, 24, 30, 64]
REACHED = WINDOWS[:-1]


def windowed(model_type, window):
    return pair(model_type, sliding_window=window)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("model_type", SLIDING)
def test_sliding_windows(model_type, window):
    assert_relayed(windowed(model_type, window), RAGGED)


@pytest.mark.parametrize("window", REACHED)
@pytest.mark.parametrize("model_type", SLIDING)
def test_a_window_may_not_be_left_out(model_type, window, monkeypatch):
    leave_out(monkeypatch, "sliding_window")
    assert_wrong(windowed(model_type, window), RAGGED)


def read_queries(monkeypatch, change):
    """The plan reads where the queries are, with a change."""
    read = plan.Plan.queries
    monkeypatch.setattr(plan.Plan, "queries", lambda self: replace(read(self), **change(read(self))))


@pytest.mark.parametrize("window", REACHED)
def test_distances_may_not_be_counted_in_columns(window, monkeypatch):
    """Row 0 has four columns of padding between the prefix and its own tokens; none of them is a token."""

    def in_columns(queries):
        return {"positions": tuple(map(sum, zip(queries.positions, queries.own_starts, strict=True)))}

    read_queries(monkeypatch, in_columns)
    assert_wrong(windowed("mistral", window), RAGGED)


@pytest.mark.parametrize("window", [12, 24])
def test_the_padding_between_prefix_and_own_tokens_may_not_be_seen(window, monkeypatch):
    read_queries(monkeypatch, lambda queries: {"own_starts": (0,) * len(queries.own_starts)})
    assert_wrong(windowed("mistral", window), RAGGED)


def no_window_in_the_cache(monkeypatch):
    counterpart = cache._counterpart

    def without_window(layer, rows):
        layer.sliding_window = None
        return counterpart(layer, rows)

    monkeypatch.setattr(cache, "_counterpart", without_window)


def test_a_window_that_the_cache_has_and_the_mask_has_not(monkeypatch):
    """As Moshi has it: its cache drops keys of which its mask says nothing. Here a mask's window goes unnoticed."""
    monkeypatch.setattr(MaskRegistry, "window_of", lambda masks, mask: None)
    models = windowed("mistral", 12)
    assert_untouched(models, RAGGED, "has a window in the cache, and none in its attention mask")
    no_window_in_the_cache(monkeypatch)
    assert_wrong(models, RAGGED)


# As for windows; a chunk is counted from the first token on.
CHUNKS = [4, 16, 20, 22, 28, 64]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks(chunk):
    models = pair("llama4_text", attention_chunk_size=chunk)
    assert_relayed(models, EQUAL)
    assert_untouched(models, RAGGED, "the model counts columns")


def no_row(monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "llama4_text")


def test_a_pattern_that_the_operator_does_not_know_is_untouched(monkeypatch):
    no_row(monkeypatch)
    assert_untouched(pair("llama4_text"), EQUAL, "neither causal nor a sliding window")


@pytest.mark.parametrize("chunk", CHUNKS[:-1])
def test_a_pattern_that_the_operator_does_not_know_needs_its_guard(chunk, monkeypatch):
    """With every mask taken for a causal one, which a cache of chunks does not let pass either."""
    no_row(monkeypatch)
    monkeypatch.setattr(masks, "_same_function", lambda one, other: True)
    assert_untouched(pair("llama4_text"), EQUAL, "has a window in the cache, and none in its attention mask")
    no_window_in_the_cache(monkeypatch)
    assert_wrong(pair("llama4_text", attention_chunk_size=chunk), EQUAL)


def test_a_long_padding_between_prefix_and_own_tokens():
    """Longer than its window, in attention code that adds two masks of the lowest finite number."""
    assert_relayed(pair("gpt_neo"), prompts(20, (1, 30)))
