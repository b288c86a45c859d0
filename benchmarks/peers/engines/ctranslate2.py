"""CTranslate2 with a static prompt: computed once, its KV copied to every row. What groups share it computes by row."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import ctranslate2
from safetensors.numpy import load_file

from ..jobs import Job
from . import Answer, Setup, ctranslate2_folder


class CTranslate2:
    """A generator, and the static prompts that it keeps."""

    def __init__(self, setup: Setup) -> None:
        folder = setup.made(
            "ctranslate2", lambda path: ctranslate2_folder.write(load_file(setup.weights), setup.shape, path)
        )
        self._compute = setup.options["compute"]
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=self._compute, inter_threads=1, intra_threads=setup.threads
        )

    def about(self) -> dict[str, Any]:
        """Versions, instruction sets and settings, for the record."""
        return {"version": f"CTranslate2 {version('ctranslate2')}", "compute_type": self._generator.compute_type}

    def prepare(self, job: Job, before: Job | None) -> Answer:
        """A call with the same static prompt runs ahead, if `before` is given. Else the static prompt is not kept."""
        keep = before is not None
        if before is not None:
            self._answer(before, keep)
        return lambda: self._answer(job, keep)

    def _answer(self, job: Job, keep: bool) -> list[list[int]]:
        static = job.shared
        results = self._generator.generate_batch(
            [_names(prompt[len(static) :]) for prompt in job.prompts()],
            static_prompt=_names(static) or None,
            cache_static_prompt=keep,
            include_prompt_in_result=False,
            num_hypotheses=job.answers,
            sampling_topk=job.top_k or 1,
            min_length=job.new,
            max_length=job.new,
        )
        return [[*ids] for result in results for ids in result.sequences_ids]


def load(setup: Setup) -> CTranslate2:
    """The model of the contender's type: `compute`."""
    return CTranslate2(setup)


def _names(ids: list[int]) -> list[str]:
    return [str(token) for token in ids]
