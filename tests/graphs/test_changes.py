"""What changes between two calls, or within one, and what becomes of the graph."""

import inspect
import weakref

import pytest
import torch
from transformers import ContinuousBatchingConfig

import relay_hf
from relay_hf.cache_utils import layer
from relay_hf.generation import lay_out
from relay_hf.testing import prompts
from tests.support.generating import cache_of, generate
from tests.support.tiny_models import tiny_model

from .cpu_graph import CpuGraph

INPUTS = prompts(20, (4, 4))


def patch(model, **options):
    return relay_hf.patch_model(model, **{"policy": "always", "cuda_graphs": True, "trust": ["*"], **options})


class Steer(torch.nn.Module):
    """A part of a model with numbers and a tensor that are neither parameter nor buffer."""

    def __init__(self, inner, width):
        super().__init__()
        self.inner, self.vector, self.factor, self.factors = inner, torch.zeros(width), 1.0, {"all": [1.0]}

    def forward(self, hidden):
        return self.inner(hidden) + self.factor * self.factors["all"][0] * self.vector


@pytest.mark.parametrize(
    "change",
    [
        lambda steer: setattr(steer, "vector", -steer.vector),
        lambda steer: setattr(steer, "factor", -1.0),
        lambda steer: steer.factors["all"].__setitem__(0, -1.0),
    ],
    ids=["vector", "factor", "a list in a dictionary"],
)
def test_numbers_and_tensors_of_modules_are_looked_at(graphs, change):
    model = tiny_model("llama")
    steer = Steer(model.model.layers[1].mlp, 32)
    model.model.layers[1].mlp = steer
    steer.vector = torch.linspace(-9, 9, 32)
    patch(model)
    generate(model, INPUTS)
    change(steer)
    model.relay._hooks.store.clear()  # what is kept of a prefix knows nothing of these
    ours = generate(model, INPUTS)
    assert len(graphs) == 2
    relay_hf.unpatch_model(model)
    assert torch.equal(generate(model, INPUTS), ours)


class Mode(torch.nn.Module):
    """A part of a model that computes something else in training mode."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) * (-1.0 if self.training else 1.0)


@pytest.mark.parametrize("of", ["the model", "a part"])
def test_a_graph_of_one_mode_does_not_serve_the_other(graphs, of):
    model = tiny_model("llama")
    part = model.model.layers[1].mlp = Mode(model.model.layers[1].mlp).eval()
    changed = model if of == "the model" else part
    stock = generate(model, INPUTS), generate(changed.train() and model, INPUTS)
    assert not torch.equal(*stock)
    patch(model.eval())
    assert torch.equal(generate(model, INPUTS), stock[0])
    changed.train()
    assert torch.equal(generate(model, INPUTS), stock[1])
    model.eval()
    assert torch.equal(generate(model, INPUTS), stock[0])
    assert model.relay.last.graph_steps == 11, "on the first graph"


@pytest.fixture
def arithmetic():
    """How products are computed, as it was again in the end."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.mark.parametrize(
    "change",
    [lambda: torch.set_float32_matmul_precision("high"), lambda: torch.use_deterministic_algorithms(True)],
    ids=["TensorFloat-32", "deterministic"],
)
def test_kernels_that_were_chosen_for_other_arithmetic_are_not_replayed(graphs, arithmetic, change):
    """The stand-in has no kernels of its own: that another graph is captured is what can be seen here."""
    model = patch(tiny_model("llama"))
    expected = generate(model, INPUTS)
    change()
    assert torch.equal(generate(model, INPUTS), expected)
    assert (len(graphs), model.relay.last.graph_steps) == (2, 10)


def test_the_graph_of_weights_that_are_no_more_is_dropped(graphs):
    model = patch(tiny_model("llama"))
    generate(model, INPUTS)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone())
    generate(model, INPUTS)
    assert len(graphs) == 2
    assert len(model.relay._hooks.graphs) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about itself
def test_adapters_that_are_switched_between_calls_and_within_one(graphs):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()

    def run(columns=999):
        def switch(ids, scores):
            if ids.shape[1] == columns:
                model.base_model.disable_adapter_layers()
            return scores

        tokens = model.generate(**INPUTS, max_new_tokens=14, min_new_tokens=14, logits_processor=[switch])
        model.base_model.enable_adapter_layers()
        return tokens

    def off():
        with model.disable_adapter():
            return run()

    stock = [run(), off(), run(), off(), run(31)]
    assert not torch.equal(stock[0], stock[4])
    patch(model)
    assert all(torch.equal(*pair) for pair in zip([run(), off(), run(), off(), run(31)], stock, strict=True))
    assert model.get_base_model().relay.last.graph_reason == "adapters changed within the call"


def tree():
    """Four rows that share 20 tokens, and two and two of them 18 more."""
    inputs = prompts(20, (30, 30, 30, 30))
    ids = inputs["input_ids"]
    ids[1, 20:38], ids[3, 20:38] = ids[0, 20:38].clone(), ids[2, 20:38].clone()
    return inputs


@pytest.mark.parametrize("place", ["logits", "inputs"])
@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices"])
@pytest.mark.parametrize("inputs", [INPUTS, tree()], ids=["flat", "tree"])
def test_rows_that_move_between_two_steps(graphs, monkeypatch, inputs, change, place):
    """From a logits processor, and, after the next step has been started ahead, where the loop prepares its inputs."""
    model, held, given = tiny_model("llama"), [], inputs["input_ids"]
    order = torch.arange(len(given)).roll(len(given) // 2)  # rows of one group for those of another
    update, prepare = type(model)._update_model_kwargs_for_generation, type(model).prepare_inputs_for_generation

    def move(columns):
        if held and columns - given.shape[1] in (2, 5, 7):  # after the step that is recorded, and later
            getattr(held[-1], change)(order)

    def updating(self, outputs, inputs, **kwargs):
        held.append(cache_of(outputs))
        return update(self, outputs, inputs, **kwargs)

    def preparing(self, input_ids, **kwargs):
        if place == "inputs":
            move(input_ids.shape[1])
        return prepare(self, input_ids, **kwargs)

    def processor(ids, scores):
        if place == "logits":
            move(ids.shape[1])
        return scores

    preparing.__wrapped__ = prepare
    monkeypatch.setattr(type(model), "_update_model_kwargs_for_generation", updating)
    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", preparing)
    stock = generate(model, inputs, logits_processor=[processor])
    patch(model)
    for _ in range(2):
        held.clear()
        assert torch.equal(generate(model, inputs, logits_processor=[processor]), stock)
        assert model.relay.last.relayed
        assert model.relay.last.graph_steps > (4 if change == "reorder_cache" else 0)


@pytest.mark.parametrize("act", ["options", "clear"])
def test_what_is_dropped_while_a_call_runs_does_not_come_back_with_it(graphs, act):
    model = patch(tiny_model("llama"))
    handle, stock = model.relay, generate(model, INPUTS)
    acts = {
        "options": lambda: patch(model, cuda_graphs=False),
        "clear": lambda: model.relay.clear(),
    }

    def criterion(ids, scores):
        if ids.shape[1] == 30:
            acts[act]()
        return torch.zeros(len(ids), dtype=torch.bool)

    assert torch.equal(generate(model, INPUTS, stopping_criteria=[criterion]), stock)
    assert len(handle._hooks.graphs) == 0


def test_what_could_not_be_captured_is_not_tried_in_every_call(graphs):
    model = patch(tiny_model("gpt_oss"))
    made = []
    for _ in range(3):
        generate(model, INPUTS)
        made.append(len(graphs))
        assert model.relay.last.graph_reason.startswith("two steps of the model differ")
    assert made == [made[0]] * 3
    model.relay.clear()
    generate(model, INPUTS)
    assert len(graphs) > made[0]


def test_a_call_that_is_not_for_the_models_own_loop_is_left_as_it_is(graphs):
    """Paged generation refuses stopping criteria."""
    model = tiny_model("llama")
    # Left to itself its cache fills the memory first, for 15 s.
    options = {"continuous_batching_config": ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=64)}

    def run():
        try:
            return model.generate(**INPUTS, max_new_tokens=4, cache_implementation="paged", **options).tolist()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    stock = run()
    patch(model)
    assert run() == stock


def test_a_call_that_outgrows_its_buffers_near_its_end_goes_on_step_by_step(graphs, monkeypatch):
    monkeypatch.setattr(lay_out, "free_bytes", lambda device: 0)
    monkeypatch.setattr(layer, "_LEAST_RESERVED", 30)
    model = patch(tiny_model("llama"), cuda_graphs="auto")
    generate(model, prompts(20, (3, 5)), max_new_tokens=40, min_new_tokens=40)
    report = model.relay.last
    assert (len(graphs), report.graph_reason) == (1, "")
    assert 25 < report.graph_steps < 35


@pytest.mark.parametrize("failures", [1, 2])
def test_a_capture_that_lacks_memory_is_tried_again_and_not_held_against_later_calls(graphs, monkeypatch, failures):
    model = tiny_model("llama")
    stock, capture, left = generate(model, INPUTS), CpuGraph.capture, [None] * failures

    def lacking(graph, run):
        outputs = capture(graph, run)
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return outputs

    monkeypatch.setattr(CpuGraph, "capture", lacking)
    patch(model)
    assert torch.equal(generate(model, INPUTS), stock)
    assert model.relay.last.graph_steps == (9 if failures == 1 else 0), "of eleven two are recorded"
    assert ("CUDA out of memory" in model.relay.last.graph_reason) == (failures == 2)
    assert torch.equal(generate(model, INPUTS), stock)
    assert (model.relay.last.graph_steps, model.relay.last.graph_reason) == ((11, ""), (10, ""))[failures - 1]


def test_what_a_failed_capture_allocated_is_free_before_the_step_is_run_after_all(graphs, monkeypatch):
    model, held = tiny_model("llama"), []
    capture, forward = CpuGraph.capture, type(model).forward

    def failing(graph, run):
        outputs = capture(graph, run)
        held.append(weakref.ref(outputs[0]["logits"]))
        raise RuntimeError("a capture fails")

    def looking(self, *args, **kwargs):
        assert all(output() is None for output in held)
        return forward(self, *args, **kwargs)

    looking.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(CpuGraph, "capture", failing)
    monkeypatch.setattr(type(model), "forward", looking)
    generate(patch(model), INPUTS)
    assert model.relay.last.graph_reason == "RuntimeError: a capture fails"
    assert held
