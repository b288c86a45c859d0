"""The batch as a tree: what rows share is found at every level, whatever their order and padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_hf.prefix import Prompts
from relay_hf.prefix.tree import pruned, shared_runs, walk


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Prompts.of(ids, mask)


def outline(runs):
    return [(depth, run.start, run.ids.tolist(), run.rows) for depth, run in walk(runs)]


def test_levels():
    rows = [[1, 2, 3, 4, 5, 9], [1, 2, 8], [1, 2, 3, 4, 6, 9, 9], [7, 7, 7], [1, 2, 3, 4, 5, 5]]
    assert outline(shared_runs(padded(rows), own=1)) == [
        (0, 0, [1, 2], (0, 1, 2, 4)),
        (1, 2, [3, 4], (0, 2, 4)),
        (2, 4, [5], (0, 4)),
    ]


def test_a_forest():
    rows = [[5, 6, 1], [7, 8, 1], [5, 6, 2], [7, 8, 2], [9, 9, 9]]
    assert outline(shared_runs(padded(rows), own=1)) == [(0, 0, [5, 6], (0, 2)), (0, 0, [7, 8], (1, 3))]


def test_equal_rows_keep_their_own_tokens():
    rows = [[3, 4, 5, 6]] * 3
    assert outline(shared_runs(padded(rows), own=1)) == [(0, 0, [3, 4, 5], (0, 1, 2))]
    assert outline(shared_runs(padded(rows), own=2)) == [(0, 0, [3, 4], (0, 1, 2))]
    assert shared_runs(padded(rows), own=4) == []


def test_a_row_that_ends_inside_a_run_of_others_cuts_it():
    rows = [[1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 3, 4, 6]]
    assert outline(shared_runs(padded(rows), own=1)) == [(0, 0, [1, 2], (0, 1, 2)), (1, 2, [3, 4], (0, 2))]


def test_no_rows_and_no_tokens():
    empty = torch.zeros(0, 4, dtype=torch.int64)
    assert shared_runs(Prompts.of(empty, None), own=1) == []
    assert shared_runs(Prompts.of(torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, 3)), own=1) == []


def brute_force(rows, own):
    """Every token that at least two rows share, as (position, token path, rows): the trie."""
    trie = {}
    for index, row in enumerate(rows):
        for end in range(1, len(row) - own + 1):
            trie.setdefault(tuple(row[:end]), []).append(index)
    return {path: tuple(found) for path, found in trie.items() if len(found) > 1}


rows_of_few_words = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=7)


@given(rows_of_few_words, st.integers(1, 2))
@settings(max_examples=300, deadline=None)
def test_every_shared_token_is_in_one_run(rows, own):
    covered = {}
    paths = {0: ()}
    for depth, run in walk(shared_runs(padded(rows), own)):
        path = paths[depth]
        assert len(path) == run.start
        for token in run.ids.tolist():
            path = (*path, token)
            covered[path] = run.rows
        paths[depth + 1] = path
        assert run.ways > 1 or len(run.rows) > 1
    assert covered == brute_force(rows, own)


@given(rows_of_few_words, st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_pruning_moves_tokens_down_and_leaves_the_others(rows, least):
    def ways_to_rows(runs):
        tokens = {row: [] for row in range(len(rows))}
        for _, run in walk(runs):
            for row in run.rows:
                assert len(tokens[row]) == run.start
                tokens[row] += run.ids.tolist()
        return tokens

    whole = shared_runs(padded(rows), 1)
    before = outline(whole)
    kept = pruned(whole, lambda tokens, run: tokens >= least)
    assert outline(whole) == before
    assert all(len(run.ids) >= least for _, run in walk(kept))
    everything = ways_to_rows(whole)
    for row, tokens in ways_to_rows(kept).items():
        assert everything[row][: len(tokens)] == tokens


def test_a_chain_of_a_thousand_runs():
    """Rows that go one token further each along one text."""
    text = torch.arange(1100).tolist()
    runs = shared_runs(padded([[*text[: 1 + row], 2000] for row in range(1100)]), own=1)
    assert max(depth for depth, _ in walk(runs)) > 1000
    assert pruned(runs, lambda tokens, run: False) == []
    assert len([*walk(pruned(runs, lambda tokens, run: tokens >= 500))]) == 2


def test_pruning_counts_ways_on():
    rows = [[1, 2, 3, 3, 3, 9], [1, 2, 3, 3, 3, 8], [1, 2, 4, 4, 4, 9], [1, 2, 4, 4, 4, 8]]
    runs = shared_runs(padded(rows), own=1)
    kept = pruned(runs, lambda tokens, run: tokens * (run.ways - 1) > 2)
    assert outline(kept) == [(0, 0, [1, 2, 3, 3, 3], (0, 1)), (0, 0, [1, 2, 4, 4, 4], (2, 3))]
