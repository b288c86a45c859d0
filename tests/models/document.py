"""docs/models.md, from the trials."""

from __future__ import annotations

import transformers

from benchmarks.document.model_types import ModelTypes
from tests.models.trial import TOLERANCE, Trial
from tests.support.sizes import UNBUILDABLE

HEAD = """# Model types

What becomes of each causal language model type of Transformers {version}, tried with a tiny model of random weights:
`generate()` on the stock model against the patched one, `policy="always"`, with a prefix of 20 tokens, cold and kept,
with and without left padding. Tokens are equal, and logits within {tolerance:g} of their scale, for every type in the
table; this file is written by `python -m tests.models`, and a test fails where it is out of date.

- **relayed**: the shared prefix is computed, stored and read once per batch.
- **relayed, own attention code**: the same. The model does not use Transformers' attention interface, or masks in its
  own way: its code is handed keys and values that hold the shared part once.
- **state shared**: the model has recurrent layers. The prefix is computed once, and each row starts from a copy of its
  state; the keys and values of its attention layers, if it has any, are shared.
- **untouched**: runs as stock does, for the reason given.

Where padding is said to matter, the model counts columns instead of positions: stock's own output changes with it.

{counts}

| type | rows of one length | padded rows | layers |
|---|---|---|---|
"""


OF_TEXT = """
## Text alone, to models that take images, video or audio

The same of `AutoModelForMultimodalLM`'s types, for prompts of text alone; the kept prefix is called with the zeros by
which a processor says that all tokens are text (`token_type_ids`, `mm_token_type_ids`). With images, video or audio a
call is untouched.

| type | rows of one length | padded rows | layers |
|---|---|---|---|
"""


def row(trial: Trial) -> str:
    """One line of the table."""
    status = trial.status
    if not trial.equal and trial.own_attention:
        status += ", own attention code"
    if trial.equal:
        padded = "the same"
    else:
        padded = f"untouched: {trial.padded}" if trial.padded else "the same"
    return f"| {trial.model_type} | {status} | {padded} | {', '.join(trial.layers)} |"


def document(trials: list[Trial], of_text: list[Trial]) -> str:
    """The whole file. `of_text`: trials of types that take images, video or audio."""
    counts = ModelTypes.of([*(trial.status.split(":")[0] for trial in trials), *["not tried"] * len(UNBUILDABLE)])
    head = HEAD.format(version=transformers.__version__, tolerance=TOLERANCE, counts=counts)
    needs = [f"| {model_type} | not tried: it needs {what} | | |" for model_type, what in UNBUILDABLE.items()]
    table = "\n".join(sorted([*map(row, trials), *needs])) + "\n"
    return head + table + OF_TEXT + "\n".join(map(row, of_text)) + "\n"
