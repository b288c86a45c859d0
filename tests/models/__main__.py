"""`python -m tests.models`: try every model type and write docs/models.md. Takes about two minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.progress import track
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from tests.models.document import document
from tests.models.trial import try_type
from tests.support.sizes import UNBUILDABLE

torch.set_num_threads(1)
logging.set_verbosity_error()
types = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(UNBUILDABLE))
trials = [try_type(model_type) for model_type in track(types, "model types")]
for trial in trials:
    if trial.errors:
        print(f"{trial.model_type}: {'; '.join(trial.errors)}")
path = Path(__file__).parents[2] / "docs" / "models.md"
path.write_text(document(trials))
print(f"{path.relative_to(Path.cwd())}: {len(trials)} types")
sys.exit(any(trial.errors for trial in trials))
