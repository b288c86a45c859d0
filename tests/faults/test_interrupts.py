"""An interrupt at any line of relay_hf that a call runs through, as Ctrl-C comes."""

from contextlib import suppress

import pytest

import relay_hf
from relay_hf import patching
from tests.support.model_snapshot import members
from tests.support.sweeps import all_but_swept
from tests.support.tiny_models import tiny_model

from .check import assert_let_go, assert_whole
from .inject import Fault, Lines, one_of_each
from .modes import MODES

POINTS_OF_WORK = 12
ENDS = {"finish", "_fill_given"}
POINTS = {"batch": 45, "one row": 20, "levels": 20, "beams": 10, "recurrent": 10}


@pytest.mark.parametrize("mode", all_but_swept(POINTS), indirect=True)
def test_the_model_stays_usable(mode, request):
    name = request.node.callspec.params["mode"]
    with Lines(Fault("interrupt", None)) as lines:
        mode.call(mode.model)
    fired = 0
    for at in one_of_each(lines.sites, list(MODES).index(name), POINTS[name]):
        mode.prepare()
        fault = Fault("interrupt", at)
        try:
            with Lines(fault):
                mode.call(mode.model)
        except KeyboardInterrupt:
            fired += 1
        else:
            assert fault.where is None  # a set in another order had fewer lines
        mode.assert_usable()
    assert fired > 0.8 * POINTS[name]


@pytest.mark.parametrize("change", ["patch", "unpatch"])
def test_a_model_that_is_patched_or_unpatched_can_still_be_undone(change):
    """At no line of `patching.py` is a patch left that `unpatch_model` does not take off, or any beside its handle."""
    model = tiny_model("llama")
    before = members(model)
    at, fault = 0, None
    while fault is None or fault.where is not None:
        if change == "unpatch":
            relay_hf.patch_model(model)
        fault = Fault("interrupt", at)
        with suppress(KeyboardInterrupt), Lines(fault, patching.__file__):
            {"patch": relay_hf.patch_model, "unpatch": relay_hf.unpatch_model}[change](model)
        if not hasattr(model, "relay"):
            assert members(model) == before
        elif change == "patch":
            assert {"generate", "_prefill", "train"} <= set(vars(model))
            assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
        relay_hf.unpatch_model(model)
        assert members(model) == before
        at += 1
    assert at > 20


@pytest.mark.parametrize("mode", ["batch"], indirect=True)
def test_every_line_at_which_a_call_ends_lets_go_of_its_memory_at_once(mode):
    with Lines(Fault("interrupt", None)) as lines:
        mode.call(mode.model)
    ends = [at for at, (code, _) in enumerate(lines.sites) if code.co_name in ENDS]
    assert {lines.sites[at][0].co_name for at in ends} == ENDS
    for at in ends:
        mode.model.relay.clear()
        with suppress(KeyboardInterrupt), Lines(fault := Fault("interrupt", at)):
            mode.call(mode.model)
        assert fault.where is not None
        assert_let_go(mode.model, mode.before, mode.caches)


# What is done beside calls: how many of the tokens are kept before, and what is done with a file and the tokens.
WORK = {
    "warm": ([9], lambda relay, path, ids: relay.warm(ids, prefill_chunk_size=8)),
    "save": ([9, 20], lambda relay, path, ids: relay.save(path)),
    "load": ([], lambda relay, path, ids: relay.load(path)),
    "explain": ([9], lambda relay, path, ids: relay.explain(ids[None])),
}


@pytest.mark.parametrize("mode", ["batch"], indirect=True)
@pytest.mark.parametrize("work", WORK)
def test_other_work_keeps_and_writes_all_or_nothing(mode, work, tmp_path):
    """And what it was interrupted in may be done again."""
    relay, ids, path = mode.model.relay, mode.inputs["input_ids"][1], tmp_path / "prefixes"
    before, act = WORK[work]
    relay.warm(ids[:15])
    relay.save(path)
    old = path.read_bytes()

    def prepare():
        relay.clear()
        for length in before:
            relay.warm(ids[:length])
        path.write_bytes(old)

    def kept():
        return [(len(each), each.run.length) for each in relay.prefixes]

    def then():
        """What is kept, and what a process finds that loads the file."""
        found = kept()
        relay.clear()
        relay.load(path)
        return found, kept()

    prepare()
    written = then()[1]
    prepare()
    with Lines(Fault("interrupt", None)) as lines:
        act(relay, path, ids)
    expected, fired, seed = then(), 0, list(WORK).index(work)
    writes = {at for at in one_of_each(lines.sites, seed) if lines.sites[at][0].co_name == "write"}
    for at in sorted(writes.union(one_of_each(lines.sites, seed, POINTS_OF_WORK))):
        prepare()
        with suppress(KeyboardInterrupt), Lines(fault := Fault("interrupt", at)):
            act(relay, path, ids)
        fired += fault.where is not None
        assert_let_go(mode.model, mode.before, mode.caches)
        assert_whole(mode.model)
        assert list(tmp_path.iterdir()) == [path]
        assert then()[1] in (written, expected[1])
        prepare()
        act(relay, path, ids)
        assert then() == expected
    mode.assert_usable()
    assert fired > 0.8 * POINTS_OF_WORK
