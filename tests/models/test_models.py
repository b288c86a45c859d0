"""Every causal language model type of Transformers: exact, with the status that the table expects."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from relay_hf.model.architectures import ARCHITECTURES
from tests.models.document import row
from tests.models.expected import EXPECTED, ONE_LENGTH, RELAYED, STATE_SHARED
from tests.models.trial import try_type
from tests.support.sizes import UNBUILDABLE
from tests.support.sweeps import swept

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
TYPES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(UNBUILDABLE))
# One of each kind: of attention, of recurrence, of what they keep, and of what is not served.
KINDS = """
    llama mistral gemma2 deepseek_v3 gpt_oss gemma3n_text bloom gptj falcon llama4_text bart mamba mamba2 bamba
    falcon_h1 nemotron_h zamba inkling_text deepseek_v32 recurrent_gemma
""".split()  # noqa: SIM905
COLUMNS = "the model counts columns, and rows are padded"
_documented = f"Transformers {transformers.__version__}" in DOCUMENT.read_text()


def expected(model_type: str) -> str | None:
    """A row of the table, or None; where this Transformers is older than the type's support, the reason for that."""
    known = ARCHITECTURES.get(model_type)
    old = known is not None and known.since > int(transformers.__version__.split(".")[1])
    return "did not" if old else EXPECTED.get(model_type)


def unknown(model_type: str) -> str:
    """What to say of a type that the table has no row of: a release that is newer than the table brings such types."""
    try:
        trial = try_type(model_type)
        became = f"it is {trial.status}; {'; '.join(trial.errors) or 'output is that of stock'}"
    except Exception as error:  # of a type that nobody has looked at it may be anything
        became = f"it can't be tried: {type(error).__name__}: {error}"
    return f"{model_type!r} of Transformers {transformers.__version__} has no row in tests/models/expected.py: {became}"


def pytest_generate_tests(metafunc):
    """One type of each kind. The sweep has all others with the latest Transformers, and where --all-types asks."""
    if "model_type" in metafunc.fixturenames:
        whole = _documented or metafunc.config.getoption("all_types")
        others = swept(kind for kind in TYPES if kind not in KINDS) if whole else []
        metafunc.parametrize("model_type", [*KINDS, *others])


def test_type(model_type):
    status = expected(model_type)
    if status is None:
        pytest.fail(unknown(model_type), pytrace=False)
    trial = try_type(model_type)
    assert not trial.errors
    if status in (RELAYED, ONE_LENGTH, STATE_SHARED):
        assert trial.status == status.removesuffix(" at one length"), trial
        assert trial.padded == (COLUMNS if status == ONE_LENGTH else ""), trial
    else:
        assert status in trial.equal, trial
        assert trial.padded, trial
    if _documented:
        assert row(trial) in DOCUMENT.read_text(), "docs/models.md is out of date: run python -m tests.models"


def test_a_type_without_a_row_is_named_with_what_became_of_it(monkeypatch):
    monkeypatch.delitem(EXPECTED, "llama")
    said = (
        r"'llama' of Transformers [\d.]+ has no row in tests/models/expected.py: it is relayed; output is that of stock"
    )
    with pytest.raises(pytest.fail.Exception, match=said):
        test_type("llama")
    with pytest.raises(pytest.fail.Exception, match=r"has no row in .*: it can't be tried: \w+: .*llama17"):
        test_type("llama17")


def test_enough_types_are_built_and_served():
    served = [kind for kind in TYPES if expected(kind) in (RELAYED, ONE_LENGTH, STATE_SHARED)]
    counts = {"5.23": (186, 159), "5.24": (193, 166)}.get(".".join(transformers.__version__.split(".")[:2]))
    if counts is not None:
        assert (len(TYPES), len(served)) == counts
    assert len(served) > 0.8 * len(TYPES)


def test_every_known_architecture_is_of_a_type_that_is_tried():
    """A row for a type that no test reads would be a promise without a proof."""
    tried = {kind.removesuffix("_text") for kind in EXPECTED}
    assert {kind.removesuffix("_text") for kind in ARCHITECTURES} <= tried
