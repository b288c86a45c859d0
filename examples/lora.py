"""A LoRA model through peft: a prefix kept under one adapter is never used under another.

The adapters are random, and not zero as at the start of training, so that they change every answer.
"""

from __future__ import annotations

import sys

import peft
import torch
from torch import Tensor

import relay_hf
from relay_hf import showcase

LORA = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def adapted(shown: showcase.Showcase) -> tuple[peft.PeftModel, dict[str, Tensor]]:
    """The model with two adapters, the same at every call, and a batch for it."""
    torch.manual_seed(0)
    model = peft.get_peft_model(shown.model, LORA, adapter_name="formal")
    model.add_adapter("casual", LORA)
    return model.eval(), shown.inputs(showcase.support_chats(2))


def serve(model: peft.PeftModel, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[int]]:
    """The tokens of each call, and how many prompt tokens it took from earlier calls."""
    changes = {
        "adapter formal": lambda: model.set_adapter("formal"),
        "adapter formal again": lambda: None,
        "adapter casual": lambda: model.set_adapter("casual"),
        "adapter casual, merged": lambda: model.merge_adapter(["casual"]),
    }
    tokens, reused = [], []
    for name, change in changes.items():
        change()
        tokens.append(showcase.timed(name, lambda: model.generate(**inputs, max_new_tokens=12, do_sample=False)))
        if relay := getattr(model, "relay", None):
            reused.append(relay.last.prefix_tokens_reused)
            shared = relay.last.prefix_length if relay.last.relayed else 0
            print(f"  {shared} tokens shared, {reused[-1]} of them from before")
    return tokens, reused


def main() -> int:
    """Serve with one adapter, with another, and with that merged into the weights: stock, then relayed."""
    arguments = showcase.options(__doc__)
    shown = showcase.load(arguments.model, size=arguments.size)
    print(f"{shown.about}\n\nstock")
    stock, _ = serve(*adapted(shown))
    print("\nrelay_hf")
    model, inputs = adapted(showcase.load(arguments.model, size=arguments.size))
    relay_hf.patch_model(model)
    relayed, reused = serve(model, inputs)

    print(f"\nthe adapters answer differently: {'no' if torch.equal(stock[0], stock[2]) else 'yes'}")
    fresh = reused[1] > 0 == reused[0] == reused[2] == reused[3]
    print(f"a kept prefix was used under its own adapter only: {'yes' if fresh else 'NO'}")
    same = all(torch.equal(ours, theirs) for ours, theirs in zip(relayed, stock, strict=True))
    return showcase.verdict(model, same) or int(not fresh)


if __name__ == "__main__":
    sys.exit(main())
