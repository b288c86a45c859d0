"""Every type that takes images, video or audio, of text alone: exact, with the status that the table expects."""

from __future__ import annotations

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from tests.models.document import row
from tests.models.expected import EXPECTED_OF_TEXT, ONE_LENGTH, RELAYED, STATE_SHARED
from tests.models.test_models import COLUMNS, DOCUMENT
from tests.models.trial import try_type
from tests.support.sweeps import swept
from tests.support.tiny_models import tiny_multimodal_model

# Three planes of positions; the same with recurrent layers; a mask by token types; attention that is not causal.
KINDS = ["qwen3_vl", "qwen3_5", "gemma3", "paligemma"]
TYPES = [kind for kind in EXPECTED_OF_TEXT if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES]
_documented = f"Transformers {transformers.__version__}" in DOCUMENT.read_text()


def pytest_generate_tests(metafunc):
    """One type of each kind. The sweep has all others with the latest Transformers, and where --all-types asks."""
    whole = _documented or metafunc.config.getoption("all_types")
    others = swept(kind for kind in TYPES if kind not in KINDS) if whole else []
    metafunc.parametrize("model_type", [*KINDS, *others])


def test_text_alone(model_type):
    status, trial = EXPECTED_OF_TEXT[model_type], try_type(model_type, tiny_multimodal_model)
    assert not trial.errors
    if status in (RELAYED, ONE_LENGTH, STATE_SHARED):
        assert trial.status == status.removesuffix(" at one length"), trial
        assert trial.padded == (COLUMNS if status == ONE_LENGTH else ""), trial
    else:
        assert status in trial.equal, trial
        assert status in trial.padded, trial
    if _documented:
        assert row(trial) in DOCUMENT.read_text(), "docs/models.md is out of date: run python -m tests.models"
