"""What each lock is for: another thread works in the middle of what it guards, and what comes of both is right."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

import relay_hf
from relay_hf.model import attention_choice
from relay_hf.prefix.store import PrefixStore
from relay_hf.report import RelayStats
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .threads import LIMIT

INPUTS = prompts(20, (3, 7, 1, 5))
PATIENCE = 1  # seconds for which a thread that holds a lock looks whether another one gets by it


class Meanwhile:
    """Another thread's work, begun in the middle of this one's, which goes on once that is by or seen to wait.

    Attributes:
        by: set where that work is done, or by itself.
    """

    def __init__(self, pool, work):
        self.pool, self.work, self.future, self.by = pool, work, None, Event()

    def __call__(self):
        if self.future is None:
            self.future = self.pool.submit(self.work)
            self.future.add_done_callback(lambda _: self.by.set())
            self.by.wait(PATIENCE)

    def result(self):
        return self.future.result(LIMIT)


@pytest.fixture
def meanwhile():
    with ThreadPoolExecutor(1) as pool:
        yield lambda work: Meanwhile(pool, work)


class Choice:
    """A configuration, as far as selection knows it; who sets the user's choice lets another thread work before."""

    def __init__(self, before_restoring=None):
        self.now, self.before_restoring = "sdpa", before_restoring

    @property
    def _attn_implementation_internal(self):
        return self.now

    @_attn_implementation_internal.setter
    def _attn_implementation_internal(self, value):
        if value == "sdpa":
            self.before_restoring()
        self.now = value


def test_a_forward_that_begins_while_another_one_restores_the_config_finds_ours(meanwhile):
    other = meanwhile(lambda: attention_choice.select([config], "other"))
    config = Choice(other)
    attention_choice.select([config], "one")
    attention_choice.deselect([config], "one")
    other.result()
    assert config.now == attention_choice.ATTENTION_NAME
    attention_choice.deselect([config], "other")
    assert config.now == "sdpa"
    assert not attention_choice._holders


def test_calls_that_end_together_are_all_counted(meanwhile):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    other = meanwhile(lambda: generate(model, INPUTS))

    class Slow(RelayStats):
        @property
        def calls(self):
            found = vars(self)["calls"]
            other()
            return found

        @calls.setter
        def calls(self, value):
            vars(self)["calls"] = value

    model.relay._hooks._stats = Slow()
    generate(model, INPUTS)
    other.result()
    assert model.relay.stats().calls == 2


def test_a_call_that_begins_while_the_model_is_unpatched_is_stock_from_its_start(meanwhile):
    stock = tiny_model("llama")
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    relay, ours, unpatched = model.relay, model.generate, Event()

    def hold(input_ids, scores, **kwargs):
        other.by.set()
        assert unpatched.wait(LIMIT)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    other = meanwhile(lambda: ours(**INPUTS, max_new_tokens=12, min_new_tokens=12, stopping_criteria=[hold]))

    class Open(set):
        def __bool__(self):
            found = len(self) > 0
            other()
            return found

    relay._hooks._open = Open()
    relay_hf.unpatch_model(model)
    unpatched.set()
    assert torch.equal(other.result(), generate(stock, INPUTS))
    assert not relay.last.relayed


def test_the_store_is_made_once(meanwhile):
    other = meanwhile(lambda: keeper.tree)

    def budget():
        other()
        return 1000

    keeper = PrefixStore(budget)
    assert keeper.tree is other.result()
