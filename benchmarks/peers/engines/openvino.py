"""OpenVINO GenAI with continuous batching and prefix caching: blocks of KV whose tokens are equal are stored once.

A prompt finds the blocks of prompts that came before it, not of those beside it. So what prompts share goes ahead,
as a prompt of its own, and as whole blocks: answers of 2026.4.1 are wrong where several prompts go on in one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import openvino
import openvino_genai
from safetensors.numpy import load_file

from ..jobs import Job
from . import Answer, Setup, openvino_folder

_BLOCK = 32  # tokens of a block of KV on CPUs


class OpenVino:
    """A pipeline, made anew wherever nothing may be kept: it can't be told to forget."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        kind = setup.options["weights"]
        self._folder = setup.made(
            f"openvino-{kind}", lambda path: openvino_folder.write(load_file(setup.weights), setup.shape, kind, path)
        )

    def about(self) -> dict[str, Any]:
        """Versions, instruction sets and settings, for the record."""
        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {"version": f"openvino-genai {version('openvino_genai')}", "instructions": ", ".join(able)}

    def prepare(self, job: Job, before: Job | None) -> Answer:
        """A new pipeline answers a job of the same shape and other tokens first, and then `before`, if it is given."""
        self._pipeline = None  # its memory is free before the next one takes as much
        self._pipeline = self._new_pipeline(job)
        vocab = self._setup.shape["vocab"]
        self._answer(job.mapped(lambda token: vocab - token))
        if before is not None:
            self._answer(before)
        return lambda: self._answer(job, kept=before is not None)

    def _answer(self, job: Job, kept: bool = False) -> list[list[int]]:
        if not kept:
            for level in job.levels:
                shared = [piece for piece in level if piece.kept and len(piece.rows) > job.answers]
                starts = [job.row(piece.rows[0])[: piece.end // _BLOCK * _BLOCK] for piece in shared]
                self._generate([start for start in starts if start], 1, 1, 0)
        return self._generate(job.prompts(), job.new, job.answers, job.top_k)

    def _generate(self, prompts: Sequence[Sequence[int]], new: int, answers: int, top_k: int) -> list[list[int]]:
        if not prompts:
            return []
        wanted = openvino_genai.GenerationConfig(
            max_new_tokens=new, ignore_eos=True, do_sample=bool(top_k), num_return_sequences=answers
        )
        if top_k:
            wanted.top_k = top_k
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self._pipeline.generate(inputs, [wanted] * len(inputs))
        return [[*ids] for result in results for ids in result.m_generation_ids]

    def _new_pipeline(self, job: Job) -> openvino_genai.ContinuousBatchingPipeline:
        options, longest = self._setup.options, max(map(len, job.prompts())) + job.new
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = options["batch"]
        scheduler.max_num_seqs = 2 * job.rows
        scheduler.num_kv_blocks = 2 * (1 + job.rows) * (2 + longest // _BLOCK)
        properties = {
            "INFERENCE_NUM_THREADS": self._setup.threads,
            "INFERENCE_PRECISION_HINT": options["precision"],
            "KV_CACHE_PRECISION": options["kv"],
            **options.get("properties", {}),
        }
        return openvino_genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", properties)


def load(setup: Setup) -> OpenVino:
    """The model of the contender's type: `weights`, `precision` of the computation, `kv`, tokens of a `batch`."""
    return OpenVino(setup)
