"""A fault in what is the caller's own: processors, criteria, streamers, the model's layers, how it prepares inputs."""

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .inject import KINDS, Fault


class Processor(LogitsProcessor):
    def __init__(self, fault):
        self.fault = fault

    def __call__(self, input_ids, scores):
        self.fault()
        return scores


class Criterion(StoppingCriteria):
    def __init__(self, fault):
        self.fault = fault

    def __call__(self, input_ids, scores, **kwargs):
        self.fault()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Put(BaseStreamer):
    def __init__(self, fault):
        self.fault = fault

    def put(self, value):
        self.fault()

    def end(self):
        pass


class End(Put):
    def put(self, value):
        pass

    def end(self):
        self.fault()


def asks(patch, thing, name, fault):
    """Let a method ask the fault first."""
    method = getattr(thing, name)

    def ask(*args, **kwargs):
        fault()
        return method(*args, **kwargs)

    patch.setattr(thing, name, ask)


def layer(number):
    def options(model, fault, patch):
        kind = type(model.model.layers[number])
        forward = kind.forward

        def ask(self, *args, **kwargs):
            if self is model.model.layers[number]:
                fault()
            return forward(self, *args, **kwargs)

        patch.setattr(kind, "forward", ask)
        return {}

    return options


def inputs(model, fault, patch):
    asks(patch, type(model), "prepare_inputs_for_generation", fault)
    return {}


def processor(model, fault, patch):
    return {"logits_processor": [Processor(fault)]}


def criterion(model, fault, patch):
    return {"stopping_criteria": [Criterion(fault)]}


# What asks the fault, the time at which it raises, and whether that is in the prefill: of the prefix, then of the rows.
POINTS = {
    "processor, first": (processor, 0, False),
    "processor, last": (processor, 3, False),
    "criterion, first": (criterion, 0, False),
    "criterion, last": (criterion, 3, False),
    "streamer, prompt": (lambda model, fault, patch: {"streamer": Put(fault)}, 0, False),
    "streamer, token": (lambda model, fault, patch: {"streamer": Put(fault)}, 2, False),
    "streamer, end": (lambda model, fault, patch: {"streamer": End(fault)}, 0, False),
    "inputs of the prefix": (inputs, 0, True),
    "inputs of the rows": (inputs, 1, True),
    "inputs of a step": (inputs, 3, False),
    "first layer, prefix": (layer(0), 0, True),
    "last layer, prefix": (layer(-1), 0, True),
    "first layer, rows": (layer(0), 1, True),
    "last layer, rows": (layer(-1), 1, True),
    "first layer, first step": (layer(0), 2, False),
    "last layer, last step": (layer(-1), 4, False),
}


@pytest.mark.parametrize("mode", ["batch", "samples"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_the_caller_sees_it_and_the_model_stays_usable(mode, kind, monkeypatch, request):
    """But in the prefill, where stock goes on; an interrupt is seen there too."""
    for name, (make, at, in_prefill) in POINTS.items():
        if "streamer" in name and mode.options.get("num_return_sequences"):
            continue  # stock refuses those
        mode.prepare()
        error = tokens = None
        fault = Fault(kind, at)
        with monkeypatch.context() as patch:
            options = make(mode.model, fault, patch)
            if "streamer" in name:
                one = {key: value[:1] for key, value in mode.inputs.items()}
                options |= one
            try:
                tokens = mode.call(mode.model, **options)
            except BaseException as raised:
                error = type(raised), str(raised)
            del options
        assert fault.where is not None, name
        if in_prefill and kind != "interrupt":
            assert torch.equal(tokens, mode.expected), name
            assert mode.model.relay.last.reason.startswith("out of memory" if "memory" in kind else "a relayed"), name
            assert not mode.model.relay.prefixes or "rows" in name
        else:
            assert error == (type(KINDS[kind]()), str(KINDS[kind]())), name
        del tokens
        mode.assert_usable()
        mode.model.relay.clear()


@pytest.mark.parametrize("mode", ["batch"], indirect=True)
@pytest.mark.parametrize("at", [0, 1, 2], ids=["prefix", "rows", "step"])
def test_a_layer_that_always_fails_is_stocks_own_error(mode, at, monkeypatch):
    error = None
    with monkeypatch.context() as patch:
        seen = []

        def fault():
            seen.append(len(seen))
            if len(seen) > at:
                raise ValueError(f"failure {len(seen)}")

        layer(-1)(mode.model, fault, patch)
        try:
            mode.call(mode.model)
        except ValueError as raised:
            error = str(raised)
    assert error == f"failure {at + (1 if at == 2 else 2)}"
    mode.assert_usable()
