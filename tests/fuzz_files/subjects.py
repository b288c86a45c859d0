"""The models that the files are of: what is saved of each, and what stock makes of the prompts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import relay_hf
from relay_hf.prefix.file_tensors import named_tensors
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model

# Plain attention; windows and sinks; latents beside what attention sees; recurrent layers beside attention, and alone.
TYPES = ("llama", "gpt_oss", "deepseek_v3", "falcon_h1", "mamba")
_BYSTANDER = [96, 2, 3, 4]
Content = dict[tuple[int, ...], tuple[bool, dict[str, bytes]]]


@dataclass(eq=False)
class Subject:
    """A model and a file of its prefixes.

    Attributes:
        model: of the weights that the file is of; patched, and empty between cases.
        data: the bytes of the file.
        content: what is kept when it is loaded.
        rows: a batch of prompts that start with one of the prefixes.
        expected: stock's tokens.
        reused: how many tokens of the rows' prefix come from the file.
    """

    model: PreTrainedModel
    data: bytes
    content: Content
    rows: dict[str, torch.Tensor]
    expected: torch.Tensor
    reused: int

    def reset(self, bystander: bool) -> Content:
        """Leave nothing kept, or one prefix that no file has."""
        self.model.relay.clear()
        if bystander:
            self.model.relay.warm(_BYSTANDER, pin=True)
        return kept(self.model)

    def generated(self) -> torch.Tensor:
        """Some tokens for the rows."""
        return tokens(self.model, self.rows)


@cache
def subject(model_type: str) -> Subject:
    """Of a model type: three prefixes, two of which start alike, are warmed and saved."""
    model, other = (relay_hf.patch_model(tiny_model(model_type), policy="always") for _ in range(2))
    rows = prompts(14, (3, 5))
    ids = rows["input_ids"][1]
    tree = prompts(10, (4, 6), seed=7)["input_ids"][1]
    for prefix in (ids[:14], tree[:10], tree):
        model.relay.warm(prefix, pin=len(prefix) == 10)
    model.relay.warm([*tree[:6].tolist(), 1, 2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p"
        model.relay.save(path)
        other.relay.load(path)
        data = path.read_bytes()
    found = Subject(other, data, kept(other), rows, tokens(tiny_model(model_type), rows), 0)
    found.generated()
    found.reused = other.relay.last.prefix_tokens_reused
    return found


def kept(model: PreTrainedModel) -> Content:
    """All that a model keeps, byte for byte, by the tokens of each prefix."""
    return {
        tuple(prefix.ids.tolist()): (prefix.pinned, {name: _bytes(t) for name, t in named_tensors(prefix.run).items()})
        for prefix in model.relay.prefixes
    }


def tokens(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Four greedy tokens behind each row."""
    return model.generate(**rows, max_new_tokens=4, min_new_tokens=4)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
