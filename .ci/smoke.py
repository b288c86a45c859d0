"""An installed relay_hf, used outside the checkout: is it the archive's, is it typed, does it relay?"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import relay_hf
from relay_hf import showcase

package = Path(relay_hf.__file__).parent
if Path(sys.prefix) not in package.parents or not (package / "py.typed").exists():
    sys.exit(f"relay_hf is not the installed one, or has no py.typed: {package}")
if not (package / "kernels/triton/tiles.json").exists():
    sys.exit(f"the tile table of the GPU kernels is not installed: {package}")

if "Wren" not in showcase.SYSTEM_PROMPT or len(showcase.QUESTIONS) < 2:
    sys.exit("the showcase's texts are not installed")


def command_line(*arguments: str) -> str:
    """What the installed `relay-hf` prints."""
    done = subprocess.run(
        [Path(sys.prefix) / "bin" / "relay-hf", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"relay-hf {' '.join(arguments)} of the installed package fails:\n{done.stdout}{done.stderr}")
    return done.stdout


if command_line("--version").split() != ["relay_hf", version("relay_hf")]:
    sys.exit("relay-hf --version does not print the installed version")
if not json.loads(command_line("doctor", "--json"))["ok"]:
    sys.exit("relay-hf doctor finds the installed package wrong and exits with 0")

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=256, eos_token_id=None
)
model = LlamaForCausalLM(config).eval()
prompts = torch.randint(256, (4, 40))
prompts[:, :32] = prompts[0, :32]
call = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
stock = model.generate(prompts, **call)
with relay_hf.patched(model, policy="always"):
    relayed = model.generate(prompts, **call)
    report = model.relay.last
if not report.relayed or not torch.equal(stock, relayed):
    sys.exit(f"the installed package does not relay as it should: {report}")
print(f"relay_hf {version('relay_hf')} from {package}\n{report}")
