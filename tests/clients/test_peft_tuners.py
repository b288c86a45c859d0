"""peft's tuners: each adds code of its own to a model's layers, which acts token by token, but for one."""

import peft
import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model
from tests.traps.compare import LEAST_WRONG, assert_relayed, assert_untouched, assert_wrong, error, run

# peft itself uses a name that Transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

INPUTS = prompts(20, (3, 7, 1, 5))
LAYERS = ["q_proj", "v_proj"]
# What a tuner needs to fit on so small a model.
TUNERS = {
    peft.AdaLoraConfig: {"total_step": 10},
    peft.AdamssConfig: {},
    peft.AdaptionPromptConfig: {"adapter_len": 4, "adapter_layers": 2, "target_modules": None},
    peft.BeftConfig: {},
    peft.BOFTConfig: {},
    peft.C3AConfig: {"block_size": 8},
    peft.DeftConfig: {},
    peft.DeloraConfig: {},
    peft.FourierFTConfig: {"n_frequency": 50},
    peft.FrodConfig: {},
    peft.GloraConfig: {},
    peft.GraloraConfig: {},
    peft.HiraConfig: {},
    peft.HRAConfig: {},
    peft.IA3Config: {"feedforward_modules": []},
    peft.LNTuningConfig: {},
    peft.LoHaConfig: {},
    peft.LoKrConfig: {},
    peft.LoraConfig: {},
    peft.MissConfig: {"r": 8},
    peft.OFTConfig: {},
    peft.OSFConfig: {},
    peft.PeanutConfig: {},
    peft.PsoftConfig: {"r": 8},
    peft.PveraConfig: {},
    peft.RandLoraConfig: {},
    peft.RoadConfig: {"group_size": 8},
    peft.ShiraConfig: {"r": 4},
    peft.SupertuningConfig: {},
    peft.TrainableTokensConfig: {"token_indices": [5, 6], "target_modules": ["embed_tokens"]},
    peft.UniLoraConfig: {},
    peft.VBLoRAConfig: {"vector_length": 8, "num_vectors": 16, "r": 2},
    peft.VeraConfig: {},
    peft.WaveFTConfig: {"n_frequency": 50},
}


def tuned(kind, options):
    """A tiny model with an adapter that has learnt something."""
    torch.manual_seed(0)
    config = kind(**{"task_type": "CAUSAL_LM", "target_modules": LAYERS, **options})
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def pair(kind, options):
    return tuned(kind, options), relay_hf.patch_model(tuned(kind, options), policy="always")


@pytest.mark.parametrize("kind", TUNERS, ids=lambda kind: kind.__name__)
def test_a_tuner_is_relayed(kind):
    models = pair(kind, TUNERS[kind])
    assert error(run(tiny_model("llama"), INPUTS), run(models[0], INPUTS)) > LEAST_WRONG
    assert_relayed(models, INPUTS)


def test_lily_is_untouched_because_all_tokens_of_a_batch_choose_its_experts():
    models = pair(peft.LilyConfig, {})
    assert_untouched(models, INPUTS, "runs peft.tuners.lily.layer.Linear, which may look at several tokens")
    assert "(module 'model.layers.0.self_attn.q_proj')" in models[1].relay.last.reason
    relay_hf.patch_model(models[1], trust=["*"])
    assert_wrong(models, INPUTS)
