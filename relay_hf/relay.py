"""`model.relay`, the handle of a patched model: what users see of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .config import RelayConfig, check_count
from .display import Shown, as_html, as_line
from .errors import RelayError
from .generation.explain import explain
from .generation.facts import CallArguments
from .generation.given_inputs import read_arguments
from .generation.hooks import ModelHooks
from .generation.hub import HubPrefixes
from .generation.save_load import load_prefixes, save_prefixes
from .generation.warm import read_prefix, warm
from .prefix import KeptPrefix
from .report import Explanation, RelayReport, RelayStats

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Methods that stood on the handle in earlier versions of 0.1.0. Pickles of these versions look them up there.
_MOVED = frozenset({"_budget", "after_forward", "before_forward", "encode", "generate", "prefill", "train"})


class Relay(HubPrefixes):
    """The handle that `patch_model` adds to a model. It is passed to no other module."""

    def __init__(self, hooks: ModelHooks) -> None:
        self._hooks = hooks

    @property
    def config(self) -> RelayConfig:
        """The options in force. Another RelayConfig takes the place of all of them, as with `patch_model`."""
        return self._hooks.config

    @config.setter
    def config(self, config: RelayConfig) -> None:
        if not isinstance(config, RelayConfig):
            raise TypeError(
                f"config must be a RelayConfig; got {config!r} of type {type(config).__name__}. Pass "
                "RelayConfig(policy='off'), for example, or change single options by patch_model(model, policy='off')."
            )
        self._live.configure(config)

    @property
    def last(self) -> RelayReport | None:
        """The report of the latest `generate()`, whatever it did; None before the first."""
        return self._hooks.last

    def stats(self) -> RelayStats:
        """Totals since the model was patched: a copy, which later calls do not change."""
        return self._hooks.stats()

    @property
    def prefixes(self) -> tuple[KeptPrefix, ...]:
        """The kept prefixes, the least recently used first."""
        return self._hooks.store.prefixes

    def clear(self) -> None:
        """Drop all kept prefixes, pinned ones too, and CUDA graphs, and forget what was learnt about the model."""
        self._hooks.clear()

    def warm(
        self,
        text_or_ids: str | Sequence[str] | Sequence[int] | Mapping[str, Any] | Tensor,
        tokenizer: Any = None,
        *,
        pin: bool = False,
        prefill_chunk_size: int | None = 4096,
        progress: bool | None = None,
    ) -> KeptPrefix:
        """Prefill and keep a prefix ahead of its first request.

        Args:
            text_or_ids: the prefix: token ids (`[P]` or `[1, P]`), what a tokenizer returns of one text, or one text,
                which needs `tokenizer`.
            tokenizer: turns text into ids as it does for the requests to come, special tokens included.
            pin: keep it, even if its memory is needed for other prefixes, until `clear()`, a change of the model, or
                until its `pinned` is set to False.
            prefill_chunk_size: tokens that go through the model at once (at least 1); None: all. It bounds the memory
                that the prefill takes beside the KV (of which there are two copies while chunks are joined). Models
                with recurrent layers always take all tokens at once.
            progress: show a progress bar over the chunks; None: on a terminal and in a notebook.

        Returns:
            The kept prefix. The requests' ids must start with its `ids` for it to be used. One of fewer tokens than
            `min_prefix_length` serves no call; the logger `relay_hf` warns of it.

        Raises:
            TypeError, ValueError: an argument is wrong: no token ids, ids out of the vocabulary, more ids than the
                model's context, or a wrong chunk size.
            RelayError: prefixes of this model can't be kept now; the message says why.
        """
        ids = read_prefix(self._live.model, text_or_ids, tokenizer)
        if prefill_chunk_size is not None:
            check_count("prefill_chunk_size", prefill_chunk_size, least=1)
        with torch.no_grad(), self._hooks.open_call() as call:
            return warm(call, ids, pin, prefill_chunk_size, progress)

    def save(
        self, path: str | os.PathLike[str], prefixes: KeptPrefix | Collection[KeptPrefix] | None = None
    ) -> tuple[KeptPrefix, ...]:
        """Write kept prefixes to a file, for another process of the same model.

        Args:
            path: path of the file, which becomes a safetensors file, whatever its name. An old file is replaced as a
                whole. The file holds the prefixes' token ids, so it is as confidential as the prompts are.
            prefixes: one or several of `model.relay.prefixes`; the prefixes that they extend are written too. None:
                all, also those that requests have left.

        Returns:
            The prefixes that were written, each after the one that it extends.

        Raises:
            RelayError: nothing is kept, or the model's configuration can't be written.
            PrefixFileError: the description of the tensors is far larger than they are, and no reader would take it.
            ValueError: `prefixes` is empty, or one of them is not kept any more; or no path can have such a name.
            OSError: the file can't be written, or something else than a file is at its path.
        """
        chosen = [prefixes] if isinstance(prefixes, KeptPrefix) else prefixes
        with torch.no_grad(), self._live.open_call() as call:
            return save_prefixes(call.facts, Path(path), chosen)

    def load(self, path: str | os.PathLike[str], *, mmap: bool = False) -> tuple[KeptPrefix, ...]:
        """Keep the prefixes of a file that `save` has written, on the device that this model is on.

        First every byte is compared with what was written, and the file's model with this one: type, configuration,
        modules, all weights, buffers and adapters, dtype, autocast, and version of Transformers.
        Load files only from those you trust: whoever writes a file can write any keys and values.

        Args:
            path: path of the file.
            mmap: leave the tensors mapped to the file, so that processes on one machine share their memory; on a CPU.
                Then nobody may write to the file in place, or cut it short, while it is in use: that can end the
                process. False: the tensors are copied, and a file that is cut short meanwhile is an error.

        Returns:
            The prefixes, each after the one that it extends; those that were pinned are pinned again.

        Raises:
            PrefixFileError: the file is damaged, of another format, or of another model; the message says which.
            RelayError: prefixes of this model can't be kept now, or not so many bytes.
            ValueError: no path can have such a name.
            OSError: the file can't be read, or the path is not that of a file.
        """
        with torch.no_grad(), self._live.open_call() as call:
            return load_prefixes(call, Path(path), mmap)

    def explain(
        self,
        input_ids: Tensor | Sequence[Sequence[int]] | Mapping[str, Any] | str | Sequence[str] | None = None,
        attention_mask: Tensor | GenerationConfig | None = None,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Explanation:
        """What `generate()` would do with the same arguments, and why, without running it.

        generate()'s own code resolves the arguments, up to the call's prefill. No forward runs, no random number is
        drawn, and nothing is changed: a streamer gets nothing, and caches and kept prefixes stay as they are.

        Args:
            input_ids: `[B, L]` int64, or lists of ids: generate()'s first argument. Or what a tokenizer returns, as a
                whole. Or a text or a list of texts, which needs `tokenizer=`: it adds its special tokens, and rows are
                padded on the left.
            attention_mask: `[B, L]`, a tensor. generate() takes it by name alone; any other object in the second place
                is generate()'s own second argument, a `generation_config`.
            *args: generate()'s other arguments by position.
            **kwargs: its arguments by name, such as `max_new_tokens=64`, `num_beams=4` or a cache; `input_ids` and
                `attention_mask` too.

        Returns:
            The report that the call would have, with a `tree` of the runs that its rows share. Printed, it has an
            indented line for each run. Bytes and graphs are not foretold. A call that computes before its prefill, or
            without one, is not relayed; then rows and prompt tokens are None.

        Raises:
            ValueError: `input_ids` has not two dimensions; or it is text, and there is no tokenizer, or no pad token.
            TypeError: an argument stands there twice.
            Exception: what generate() raises for its arguments.

        The call itself may do otherwise only where

        - prefixes, weights or other state have changed since, by another call for example;
        - the call raises, or its relayed prefill does (for lack of memory, or as the first of its model to show that
          the model is unfit), and so goes on as stock;
        - a loop of the caller's (`custom_generate`) runs a forward before a prefill, or more prefills than one. Such a
          loop runs here up to the first of these;
        - code of the caller's or a wrapper of generate() runs forwards in another thread, which are not stopped;
        - `token_healing` generates another end of the prompts first;
        - a wrapper changes the model while its own generate() runs, as peft's prompt learning does. `explain` is that
          of the model inside.
        """
        stock = self._live.stock("generate")
        args, kwargs = read_arguments(input_ids, attention_mask, args, kwargs)
        with self._hooks.open_dry_call(CallArguments.of(stock, args, kwargs)) as call:
            return explain(call, stock, args, kwargs)

    @property
    def _live(self) -> ModelHooks:
        """What the model is patched with."""
        if self._hooks.retired:
            raise RelayError(
                "the model of this handle is not patched any more. Patch it again, and use its new `model.relay`."
            )
        return self._hooks

    def __repr__(self) -> str:
        return as_line(self._shown())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(self._shown())

    def _shown(self) -> Shown:
        hooks = self._hooks
        kind, refused = type(hooks.model).__name__, hooks.standing_refusal()
        return Shown(kind, self.config.policy, refused, self.prefixes, hooks.store.budget, self.stats(), self.last)

    # -- pickles of earlier versions ---------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name not in _MOVED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loading(), name)  # methods of a handle are loaded before its state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_hooks" in state:
            self._hooks = state["_hooks"]
        else:
            self._loading().__setstate__(state)

    def _loading(self) -> ModelHooks:
        """The hooks of a handle that is being loaded; made where there are none yet."""
        found: ModelHooks = vars(self).setdefault("_hooks", ModelHooks.__new__(ModelHooks))
        return found
