"""A kept prefix does not outlive any change of what the model would compute."""

import copy
import itertools

import pytest
import torch

import relay_hf
from relay_hf.model.fingerprint.fingerprint import ModelFingerprint
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(30, (3, 5))


def adamw(parameter, **kind):
    # A gradient in place, as backward leaves it; dense, as weight decay makes every real step.
    parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW([parameter], lr=0.1, **kind).step()
    parameter.grad = None


def assign_data(parameter):
    parameter.data = parameter.data + 0.1


def test_the_same_bits_in_another_dtype_are_noticed():
    weight = torch.nn.Parameter(torch.ones(4, 4), requires_grad=False)
    modules = [torch.nn.ParameterList([weight])]
    witness = ModelFingerprint(modules)
    address = weight.data_ptr()
    weight.data = weight.data.view(torch.int32)
    assert weight.data_ptr() == address
    assert not witness.holds(modules)


def test_a_linear_layer_whose_weight_is_no_parameter_is_looked_at():
    """Of those that have only what their class gives them, nothing but parameters is."""
    linear = torch.nn.Linear(4, 4)
    del linear.weight
    linear.weight = torch.ones(4, 4)
    witness = ModelFingerprint([linear])
    linear.weight.data.mul_(2)
    assert not witness.holds([linear])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "uint16", "int8", "bool"])
def test_weights_of_every_dtype_are_looked_at(dtype):
    """Some of which few operators of PyTorch know."""
    kind = getattr(torch, dtype)
    weight = torch.nn.Parameter(torch.zeros(40, 40).to(kind), requires_grad=False)
    module = torch.nn.ParameterList([weight])
    module.register_buffer("buffer", torch.zeros(40).to(kind))
    for tensor in (weight, module.buffer):
        witness = ModelFingerprint([module])
        assert witness.holds([module])
        tensor.data.view(torch.uint8).fill_(1)
        assert not witness.holds([module])


class OfItsOwn(torch.Tensor):
    """A tensor that can be held, and nothing else."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("take", "as_strided", "cat", "data_ptr"):
            raise NotImplementedError(function)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(40).as_subclass(OfItsOwn),
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.zeros(4, device="meta"),
    ],
    ids=["of its own class", "sparse", "on no device"],
)
def test_a_tensor_that_has_no_elements_to_look_at_is_known_by_itself(make):
    module = torch.nn.Module()
    module.alone, module.among = make(), [make()]
    witness = ModelFingerprint([module])
    assert witness.holds([module])
    module.among[0] = make()
    assert not witness.holds([module])


CHANGES = {
    "foreach AdamW": lambda p: adamw(p, foreach=True),
    "fused AdamW": lambda p: adamw(p, fused=True),
    "copy_": lambda p: p.copy_(torch.randn_like(p)),
    ".data assignment": assign_data,
    ".data.add_": lambda p: p.data.add_(0.1),
    ".data.mul_": lambda p: p.data.mul_(1.01),
}


@pytest.fixture
def pair():
    stock = tiny_model("llama")
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_any_parameter_is_noticed(change):
    """100 random parameters a kind of change, 100 noticed."""
    model = tiny_model("qwen2", num_hidden_layers=4)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.data.normal_()  # biases start at zero, which a factor would not change
    modules = list(model.modules())
    generator = torch.Generator().manual_seed(0)
    witness = ModelFingerprint(modules)
    noticed = 0
    for _ in range(100):
        assert witness.holds(modules)
        index = int(torch.randint(len(parameters), (1,), generator=generator))
        with torch.set_grad_enabled(change.endswith("AdamW")), torch.no_grad():
            CHANGES[change](parameters[index])
        noticed += not witness.holds(modules)
        witness = ModelFingerprint(modules)
    assert noticed == 100


@pytest.mark.parametrize("shape", [(n,) for n in (33, 64, 96, 128, 192, 256, 4096)] + [(64, 16), (96, 96), (9, 7)])
def test_samples_are_spread_over_the_whole(shape):
    """No gap is much longer than a thirtieth of the elements, in front of the first sample, between two, or behind."""
    module = torch.nn.ParameterList([torch.zeros(shape)])
    flat, seen = module[0].data.view(-1), []
    witness = ModelFingerprint([module])
    for index in range(len(flat)):
        flat[index] = 1
        seen += [] if witness.holds([module]) else [index]
        flat[index] = 0
    edges = [-1, *seen, len(flat)]
    assert len(seen) == 32
    assert max(b - a for a, b in itertools.pairwise(edges[:-1])) <= max(len(flat) / 30, 1)
    assert len(flat) - edges[-2] <= max(len(flat) / 10, 32)


@pytest.mark.parametrize("model_type", ["mamba", "jamba"])
def test_a_factor_on_weights_with_a_column_of_zeros_is_noticed(model_type):
    """A_log is the logarithm of 1, 2, 3, ... in every row, in rows as short as the samples may lie apart."""
    model = tiny_model(model_type, num_hidden_layers=4)
    for parameter in [p for name, p in model.named_parameters() if name.endswith("A_log")]:
        witness = ModelFingerprint([*model.modules()])
        parameter.data.mul_(1.01)
        assert not witness.holds([*model.modules()])


def other_rope(model):
    model.model.rotary_emb.inv_freq.mul_(0.9)


def move_twice(model):
    model.to(torch.float64).to(torch.float32)


def train_a_step(model):
    model.train()
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=0.0, fused=True).step()
    model.zero_grad(set_to_none=True)
    model.eval()


def only_train_and_back(model):
    model.train()
    model.eval()


def only_backward(model):
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()


def load_weights(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})


def edit_config(model):
    model.config.rms_norm_eps = 1e-3


@pytest.mark.parametrize(
    "change", [other_rope, move_twice, train_a_step, only_train_and_back, only_backward, load_weights, edit_config]
)
def test_what_may_change_the_model_drops_the_prefixes(pair, change):
    _, ours = pair
    for _ in range(2):
        generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 30
    change(ours)
    generate(ours, INPUTS)
    assert ours.relay.last.relayed
    assert ours.relay.last.prefix_tokens_reused == 0


def test_a_change_during_the_prefill_keeps_nothing(pair):
    _, ours = pair
    weight = ours.model.layers[0].self_attn.k_proj.weight
    once = [lambda: weight.data.mul_(1.5)]

    class Disturbed(torch.nn.Module):
        def forward(self, hidden):
            while once:
                once.pop()()
            return norm(hidden)

    norm = ours.model.norm
    ours.model.norm = Disturbed().eval()
    relay_hf.patch_model(ours, trust=["model.norm"])
    generate(ours, INPUTS)
    assert not once
    assert ours.relay.last.relayed
    assert ours.relay.prefixes == ()
    for _ in range(2):
        generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 30


def test_a_change_between_lookup_and_extension_keeps_nothing(pair, monkeypatch):
    _, ours = pair
    generate(ours, INPUTS)
    ids = INPUTS["input_ids"][1, :30]
    longer = torch.cat([ids, torch.arange(5, 35)]).repeat(2, 1)
    longer = {"input_ids": torch.cat([longer, torch.tensor([[50], [51]])], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    keeper = ours.relay._hooks.store
    touch = keeper.touch

    def disturbed(matches):
        ours.model.layers[0].self_attn.k_proj.weight.data.mul_(1.5)
        touch(matches)

    monkeypatch.setattr(keeper, "touch", disturbed)
    generate(ours, longer)
    assert (ours.relay.last.prefix_length, ours.relay.last.prefix_tokens_reused) == (60, 30)
    assert [len(kept) for kept in ours.relay.prefixes] == [30]
    monkeypatch.undo()
    generate(ours, longer)
    assert (ours.relay.last.prefix_length, ours.relay.last.prefix_tokens_reused) == (60, 0)


def test_a_replaced_forward_that_is_vouched_for_makes_prefixes_live_for_one_call(pair):
    stock, ours = pair
    relay_hf.patch_model(ours, trust=["model.layers.1.mlp"])
    for factor in (0.5, 2.0):
        for model in pair:
            model.model.layers[1].mlp.forward = lambda hidden, factor=factor: factor * hidden
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.relayed
        assert ours.relay.last.unkept_reason == "the forward of a LlamaMLP was replaced"
        assert ours.relay.prefixes == ()


def test_dynamic_rope_in_inference_mode():
    """Its forward replaces a buffer, by one that has no version."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    stock = tiny_model("llama", rope_parameters=rope, max_position_embeddings=40)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
            assert ours.relay.last.relayed, ours.relay.last


def test_what_changes_nothing_keeps_them(pair):
    _, ours = pair
    generate(ours, INPUTS)
    ours.eval()
    ours.model.eval()
    ours(**INPUTS)
    ours.generation_config.temperature = 0.5
    generate(ours, INPUTS)
    # eval() is train(False): the model was in eval mode, and stays what it was.
    assert ours.relay.last.prefix_tokens_reused == 30


def test_the_documented_limit_and_its_answer(pair):
    """A few elements through .data, between the samples, are not seen; clear() is what the docs say to call."""
    _, ours = pair
    generate(ours, INPUTS)
    ours.model.layers[0].self_attn.q_proj.weight.data[3, 5] += 1
    generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 30
    ours.relay.clear()
    generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 0
