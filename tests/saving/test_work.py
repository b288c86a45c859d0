"""What a file takes to load grows with its size, however its prefixes extend one another."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import relay_hf
from relay_hf.prefix import PrefixEntry, PrefixFile, write

from .common import IDS, patched

FILES = ("radix.py", "kept_prefix.py", "store.py", "save_load.py", "file.py", "file_reader.py")


def one_behind_another(number):
    return number - 1 if number else None


def a_chain_with_a_leaf_at_each_link(number):
    return None if number < 2 else (number - 2) // 2 * 2


def written(path, count, parent):
    """A file of `count` prefixes of a token each, and a model that takes it."""
    model = patched(max_position_embeddings=2 * count)
    model.relay.warm(IDS)
    model.relay.save(path)
    (kept,) = model.relay.prefixes
    with PrefixFile(path) as file:
        identity = file.identity
    ends = []
    prefixes = []
    for number in range(count):
        before = parent(number)
        start = 0 if before is None else ends[before]
        ends.append(start + 1)
        run = replace(kept.run.first(1), start=start)
        prefixes.append(PrefixEntry(torch.tensor([number % 90]), run, parent=before))
    write(path, identity, prefixes)
    model.relay.clear()
    return model


def lines_of_loading(path, model):
    """Lines of the store and of what is around it that a load goes through."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if Path(frame.f_code.co_filename).name not in FILES:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        model.relay.load(path)
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("parent", [one_behind_another, a_chain_with_a_leaf_at_each_link])
def test_twice_as_many_prefixes_take_twice_the_steps(tmp_path, parent):
    steps = []
    for count in (40, 80):
        model = written(tmp_path / "p", count, parent)
        steps.append(lines_of_loading(tmp_path / "p", model))
    assert steps[1] < 2.1 * steps[0]


def test_a_file_makes_room_for_itself_at_once(tmp_path):
    """In a store that is full, too: what has to leave is looked for once, and not for each prefix."""
    steps = []
    for count in (40, 80):
        model = written(tmp_path / "p", count, one_behind_another)
        size = sum(prefix.nbytes for prefix in model.relay.load(tmp_path / "p"))
        model = relay_hf.patch_model(model, max_store_bytes=size)
        for token in range(90, 96):
            model.relay.warm([token] * (count // 10))
        steps.append(lines_of_loading(tmp_path / "p", model))
        assert sum(prefix.nbytes for prefix in model.relay.prefixes) == size
        assert len(model.relay.prefixes) == count
    assert steps[1] < 2.1 * steps[0]
