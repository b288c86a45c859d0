"""What relay_hf takes for granted of Transformers holds, and a change is told by the name of the fact."""

import dataclasses
import re
from pathlib import Path

import pytest
import transformers

import relay_hf
from relay_hf import RelayError
from relay_hf.model import tested
from relay_hf.model.upstream import drift, facts, version
from tests.support.tiny_models import tiny_model

ROOT = Path(relay_hf.__file__).parents[1]


@pytest.mark.parametrize("fact", facts.facts(), ids=lambda fact: fact.what)
def test_a_fact_holds(fact):
    assert fact.difference() is None


@pytest.mark.parametrize("fact", facts.facts(), ids=lambda fact: fact.what)
def test_a_fact_that_changes_is_told_by_its_name(fact):
    other = dataclasses.replace(fact, expected="something else").difference()
    assert other.startswith(f"{fact.what}: expected something else, found ")
    gone = dataclasses.replace(fact, find=lambda: transformers.nothing_of_the_kind).difference()
    assert gone.endswith("found nothing of that name")


def test_of_two_facts_of_one_thing_the_version_decides():
    def name(minor):
        (found,) = (fact for fact in facts.facts(minor) if "model's outputs" in fact.what)
        return found.expected

    assert [name(minor) for minor in (17, 23, 24, 30)] == ["past_key_values", "past_key_values", "cache", "cache"]


@pytest.mark.parametrize("found", ["5.16.1", "6.0.0", "4.57.0"])
def test_another_version_is_refused(found, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(drift, "INSTALLED", found)
    monkeypatch.setattr(drift, "is_supported", lambda: version.is_supported(found))
    with pytest.raises(RelayError, match=rf"its version: expected >=5\.17,<6, found {re.escape(found)}") as raised:
        relay_hf.patch_model(model)
    assert all(each in str(raised.value) for each in tested.TRANSFORMERS)
    assert "relay" not in vars(model)


def test_the_versions_that_are_named_are_those_that_are_run():
    pinned = {path.name: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
    run = {found for text in pinned.values() for found in re.findall(r"^transformers==([\d.]+)$", text, re.MULTILINE)}
    assert {*tested.TRANSFORMERS} == run
    assert re.search(rf"^transformers=={re.escape(tested.TRANSFORMERS[-1])}$", pinned["pins.txt"], re.MULTILINE)
