"""A service that starts warm: its system prompt is prefilled where it is built, and loaded where it runs."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import relay_hf
from relay_hf import showcase


def build(model: str, size: str | None, path: Path) -> None:
    """What a deployment runs once: prefill the system prompt, write it."""
    shown = showcase.load(model, size=size)
    relay_hf.patch_model(shown.model)
    # A template renders the system message alone as it renders it before a user's: its tokens are the same.
    system = [{"role": "system", "content": showcase.SYSTEM_PROMPT}]
    ids = shown.tokenizer.apply_chat_template(system, return_dict=True)["input_ids"]
    prefix = shown.model.relay.warm(ids, pin=True)
    shown.model.relay.save(path, [prefix])
    print(f"built: {len(prefix)} tokens, {path.stat().st_size / 2**20:.1f} MiB")


def main() -> int:
    """Build in one process; serve a first request in another one, stock and with what the file holds."""
    arguments = showcase.options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "support_bot.safetensors"
        what = (arguments.model, arguments.size, path)
        builder = multiprocessing.get_context("spawn").Process(target=build, args=what)
        builder.start()
        builder.join()

        shown = showcase.load(arguments.model, size=arguments.size)
        model = shown.model
        print(shown.about)
        request = shown.inputs(showcase.support_chats(1))

        def answer() -> list[int]:
            return model.generate(**request, max_new_tokens=8, do_sample=False)[0].tolist()

        stock = showcase.timed("stock, first request", answer)
        # The tiny model computes so little that "auto" leaves a short call of one row to stock.
        relay_hf.patch_model(model, policy="always" if arguments.size == "tiny" else "auto")
        start = time.perf_counter()
        (prefix,) = model.relay.load(path)  # refused, with the reason, if the model is another one
        print(f"{f'load {len(prefix)} tokens':<32}{time.perf_counter() - start:8.2f} s")
        relayed = showcase.timed("relay_hf, first request", answer)
        reused = model.relay.last.prefix_tokens_reused
        print(f"{reused} of {request.input_ids.shape[1]} prompt tokens came from the file")
        return showcase.verdict(model, relayed == stock) or reused != len(prefix)


if __name__ == "__main__":
    sys.exit(main())
