"""Transformers' generate(), stock or with relay_hf, in float32, in bfloat16, or with torchao's quantized weights."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import relay_hf
from relay_hf.cli.benchmark.timed_model import ModelShape

from ..jobs import Job
from . import Answer, Setup


class Generate:
    """A model of Transformers, patched or not."""

    def __init__(self, model: PreTrainedModel, setup: Setup) -> None:
        self._model = model
        self._packages = ["torch", "transformers", *(["torchao"] if "quantize" in setup.options else [])]
        self._relay = relay_hf.patch_model(model).relay if setup.options["patched"] else None

    def about(self) -> dict[str, Any]:
        """Versions, instruction sets and settings, for the record; of a patched model what its latest call did."""
        versions = ", ".join(f"{package} {version(package)}" for package in self._packages)
        found = {"version": versions, "instructions": torch.backends.cpu.get_cpu_capability()}
        last = None if self._relay is None else self._relay.last
        return found if last is None else found | {"relayed": last.relayed, "reason": last.reason}

    def prepare(self, job: Job, before: Job | None) -> Answer:
        """Nothing is kept, or what a call of `before` keeps."""
        if self._relay is not None:
            self._relay.clear()
        if before is not None:
            self._generate(before)
        return lambda: self._generate(job)

    def _generate(self, job: Job) -> list[list[int]]:
        prompts = torch.tensor(job.prompts())
        torch.manual_seed(0)
        output = self._model.generate(
            prompts,
            min_new_tokens=job.new,
            max_new_tokens=job.new,
            do_sample=bool(job.top_k),
            num_return_sequences=job.answers,
            **({"top_k": job.top_k} if job.top_k else {}),
        )
        return output[:, prompts.shape[1] :].tolist()


def load(setup: Setup) -> Generate:
    """The model in the contender's `dtype`, `patched` or not; `quantize`: torchao's configuration, if there is one."""
    torch.set_num_threads(setup.threads)
    model = ModelShape(**setup.shape).build()
    model.load_state_dict(load_file(setup.weights))
    model.to(getattr(torch, setup.options["dtype"]))
    if "quantize" in setup.options:
        from torchao import quantization

        name, arguments = setup.options["quantize"]
        quantization.quantize_(model, getattr(quantization, name)(**arguments))
    return Generate(model, setup)
