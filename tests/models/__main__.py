"""`python -m tests.models`: try every model type and write docs/models.md. Takes about two minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.progress import track
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from tests.models.document import document
from tests.models.expected import EXPECTED_OF_TEXT
from tests.models.trial import try_type
from tests.support.sizes import UNBUILDABLE
from tests.support.tiny_models import tiny_multimodal_model

torch.set_num_threads(1)
logging.set_verbosity_error()
types = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(UNBUILDABLE))
trials = [try_type(model_type) for model_type in track(types, "model types")]
of_text = [try_type(model_type, tiny_multimodal_model) for model_type in track(EXPECTED_OF_TEXT, "of text alone")]
for trial in [*trials, *of_text]:
    if trial.errors:
        print(f"{trial.model_type}: {'; '.join(trial.errors)}")
path = Path(__file__).parents[2] / "docs" / "models.md"
path.write_text(document(trials, of_text))
print(f"{path.relative_to(Path.cwd())}: {len(trials)} types, {len(of_text)} of text alone")
sys.exit(any(trial.errors for trial in [*trials, *of_text]))
