"""The workloads that engines are compared on: those of the CPU benchmark, and a shape with grouped queries."""

from __future__ import annotations

from benchmarks.cpu.workloads import WORKLOADS as NAMED
from benchmarks.cpu.workloads import NamedWorkload
from relay_hf.cli.benchmark.timed_model import ModelShape

from .jobs import Job

_TOP_K = 50  # what Transformers samples from, if nobody says otherwise
SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 49152)

WORKLOADS = {
    **{name: NAMED[name] for name in ("C1", "C2", "C3", "C5")},
    "smollm2": NamedWorkload(SMOLLM2, 16, 1024, 32, 32, about="the shape of SmolLM2-135M: 9 query heads, 3 of KV"),
    **{name: NAMED[name] for name in ("smoke", "smoke-tree")},
}


def job_of(workload: NamedWorkload, draw: int = 0) -> Job:
    """A workload as engines are asked for it; `draw`: which own tokens."""
    top_k = _TOP_K if workload.options.get("do_sample") else 0
    prompts = workload.prompts(draw).tolist()
    return Job.of_prompts(prompts, workload.levels, workload.answers, workload.new, top_k)
