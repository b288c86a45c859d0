"""What a call does before its first forward starts none of torch's threads: they take 8 ms where others hold a core."""

import subprocess
import sys

SCRIPT = """
import os, torch
torch.set_num_threads(1)
import relay_hf
from relay_hf.generation.facts import PrefillInputs
from relay_hf.generation.decide import decide
from relay_hf.generation.lay_out import lay_out
from relay_hf.model.fingerprint.samples import samples
from tests.support.tiny_models import tiny_model
from relay_hf.model.upstream.names import CACHE
from transformers import DynamicCache

model = tiny_model("llama", max_position_embeddings=4096, num_hidden_layers=40)
relay, config = relay_hf.patch_model(model, policy="always").relay, model.generation_config
rows = torch.randint(3, 90, (32, 2048))
rows[:, :2000] = rows[0, :2000]
relay.warm(rows[0, :2000])
config.max_length = 2060
inputs = {CACHE: DynamicCache(config=model.config), "attention_mask": None,
          "position_ids": torch.arange(2048).repeat(32, 1), "logits_to_keep": 1}
torch.set_num_threads(2)
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
with torch.no_grad(), relay._hooks.open_call() as call:
    asked = PrefillInputs(rows, config, inputs)
    decision = decide(call.facts, asked)
    lay_out(call, decision, asked)
assert decision.fingerprint is not None, "the model was not looked at"
print(threads() - before)
torch.ones(2**17)
print(threads() - before)
"""


def test_a_call_has_started_no_threads_when_its_first_forward_begins():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    started, by_a_large_operation = map(int, done.stdout.split())
    assert (started, by_a_large_operation) == (0, 1)
