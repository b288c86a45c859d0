"""The handle that a patched model carries as `model.relay`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from .cache_utils import SharedLayer
from .call import Call, current_call, open_call
from .config import RelayConfig
from .decision import Decision, autocast_context
from .forward import check_hits, close_frame, forward_arguments, open_frame, own_columns
from .frame import active_frame
from .generation import prefill
from .prefix import KeptPrefix, PrefixStore, RecentPrompts, Witness
from .prefix.witness import BufferKey
from .report import RelayReport, RelayStats
from .selection import attention_configs
from .warming import explain, keep_prefix, read_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger("relay_hf")


class Relay:
    """What `patch_model` adds to a model: its hooks, its kept prefixes, its reports.

    Attributes:
        model: the patched model.
        config: the options in force.
        last: the report of the latest generate(), or None before the first.
        model_refusal: why no call of this model is relayed, once that is known.
    """

    def __init__(self, model: PreTrainedModel, config: RelayConfig) -> None:
        self.model = model
        self.last: RelayReport | None = None
        self.model_refusal: str | None = None
        self.hook_ids: frozenset[int] = frozenset()
        self.stock: dict[str, Callable[..., Any]] = {}
        self.shadowed: dict[str, Any] = {}
        self._stats = RelayStats()
        self._rewritten: frozenset[BufferKey] = frozenset()
        self._start_keeping(config)

    def _start_keeping(self, config: RelayConfig) -> None:
        self.config = config
        self._lock = threading.RLock()
        self._witness: Witness | None = None
        self._store: PrefixStore | None = None
        self.recent = RecentPrompts(config.max_recent_prompts)

    def configure(self, config: RelayConfig) -> None:
        """Take other options. Prefixes stay, unless the budget or the memory of prompts is another."""
        kept = (self.config.max_store_bytes, self.config.max_recent_prompts)
        if kept == (config.max_store_bytes, config.max_recent_prompts):
            self.config = config
        else:
            self._start_keeping(config)

    @property
    def store(self) -> PrefixStore:
        """The kept prefixes. Made at first use: the budget depends on the device that the model is on by then."""
        if self._store is None:
            self._store = PrefixStore(_budget(self.config, self.model))
        return self._store

    # -- for the user ------------------------------------------------------------------------------------------------

    def stats(self) -> RelayStats:
        """Totals since the model was patched."""
        return replace(self._stats)

    @property
    def prefixes(self) -> tuple[KeptPrefix, ...]:
        """The kept prefixes, the least recently used first."""
        return tuple(self.store)

    def clear(self) -> None:
        """Drop all kept prefixes and forget the recent prompts."""
        with self._lock:
            self.store.clear()
            self.recent.clear()
            self._witness = None

    def warm(self, text_or_ids: str | Sequence[int] | Tensor, tokenizer: Any = None) -> KeptPrefix:
        """Prefill and keep a prefix ahead of its first request.

        Args:
            text_or_ids: the prefix: token ids (`[P]` or `[1, P]`), or text, which needs `tokenizer`.
            tokenizer: turns text into ids as it does for the requests to come, special tokens included.

        Returns:
            The kept prefix. The requests' ids must start with its `ids` for it to be used.

        Raises:
            TypeError, ValueError: no token ids, ids out of the vocabulary, or more than the model's context.
            RelayError: prefixes of this model can't be kept now; it says why.
        """
        ids = read_prefix(self.model, text_or_ids, tokenizer)
        with torch.no_grad(), self.open_call():
            return keep_prefix(self, ids)

    def explain(self, input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None = None) -> RelayReport:
        """What `generate(input_ids, attention_mask=...)` would do, and why, without running it.

        Args:
            input_ids: `[B, L]`, the rows as the model will run them: a prompt with `num_return_sequences=4` stands
                four times.
            attention_mask: `[B, L]`, or None when no token is padding.
        """
        with torch.no_grad(), self.open_call():
            return explain(self, torch.as_tensor(input_ids), attention_mask)

    def __repr__(self) -> str:
        return f"Relay({type(self.model).__name__}, {len(self.store)} prefixes kept, last: {self.last!r})"

    # -- what replaces the model's methods ---------------------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's generate(), with a report."""
        with self.open_call() as call:
            config = kwargs.get("generation_config") or next((a for a in args if isinstance(a, GenerationConfig)), None)
            call.names_cache = bool(kwargs.get("cache_implementation") or getattr(config, "cache_implementation", None))
            try:
                return self.stock["generate"](*args, **kwargs)
            except BaseException as error:
                call.report = call.report or RelayReport(False, f"the call raised {type(error).__name__}")
                raise
            finally:
                self._finish(call)

    def prefill(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `_prefill`, with the shared prefix found, prefilled once and held once."""
        return prefill(self, self.stock["_prefill"], *args, **kwargs)

    def train(self, mode: bool = True) -> nn.Module:
        """The model's train(): what is or was trained makes kept prefixes stale."""
        if mode or self.model.training:
            self.clear()
        return self.stock["train"](mode)

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Open the frame of a forward that has a RelayCache."""
        stale = active_frame.get()
        if stale is not None and stale.owner is self:
            close_frame(stale)
        cache, mask = forward_arguments(args, kwargs)
        if cache is not None:
            call = current_call.get()
            if call is not None and call.cache is cache:
                open_frame(cache, self, call.configs, cache.rows.holes, call.capture)
            else:
                open_frame(cache, self, attention_configs(self.model.modules()), own_columns(cache, mask))

    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Close it, and check that every layer attended to its segments."""
        frame = active_frame.get()
        if frame is not None and frame.owner is self:
            close_frame(frame)
            if output is not None:
                check_hits(frame)

    # -- for the prefill ---------------------------------------------------------------------------------------------

    @contextmanager
    def open_call(self) -> Iterator[Call]:
        """A generate() call, or what runs forwards like one."""
        modules = list(self.model.modules())
        call = Call(modules, attention_configs(modules))
        token = current_call.set(call)
        outer = active_frame.get()
        try:
            yield call
        finally:
            # An interrupt (not an Exception) passes the forward hooks by: what they left open is closed here.
            while (frame := active_frame.get()) is not outer and frame is not None:
                close_frame(frame)
            current_call.reset(token)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The configuration of the decoder."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def backend(self) -> str:
        """What computes relayed attention."""
        return "torch"

    def lookup(self, ids: Tensor) -> tuple[KeptPrefix | None, int]:
        """The kept prefix that has most of the start of `ids` (`[n]`), if the model is still what it was."""
        with self._lock:
            if len(self.store) and not (self._witness and self._witness.holds(open_call().modules)):
                logger.info("the model has changed: %d kept prefixes are dropped", len(self.store))
                self.clear()
            return self.store.lookup(ids, autocast_context(self.model.device.type))

    def remember(self, decision: Decision) -> None:
        """Note the prompt of a call, and the use of a kept prefix."""
        if len(decision.prompts.ids):
            self.recent.add(decision.prompts.first_row)
        if decision.kept is not None:
            self.store.touch(decision.kept)

    def witness_before(self) -> Witness | None:
        """The model's state before a prefix is prefilled, or None where an earlier one stands."""
        return Witness(open_call().modules, self._rewritten) if self._witness is None else None

    def keep(self, ids: Tensor, layers: list[SharedLayer], before: Witness | None) -> None:
        """Keep a prefix that was prefilled after `before` was taken."""
        with self._lock:
            if before is not None:
                # Buffers that the model's own forward rewrites (longrope's inv_freq) say nothing of a change.
                modules = open_call().modules
                self._rewritten |= before.rewritten(Witness(modules, self._rewritten))
                self._witness = Witness(modules, self._rewritten)
            self.store.add(KeptPrefix(ids, layers, autocast_context(self.model.device.type)))

    def _finish(self, call: Call) -> None:
        report = call.report or RelayReport(False, "this mode of generate() does not start with its common prefill")
        if call.cache is not None and report.relayed:
            report.kv_bytes, report.kv_bytes_stock = call.cache.nbytes(), call.cache.nbytes_stock()
        self.last = report
        self._stats.add(report)
        logger.info("%s", report)

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model keeps its patch and drops its prefixes."""
        state = self.__dict__.copy()
        for name in ("_lock", "_witness", "_store", "recent"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_keeping(self.config)


def _budget(config: RelayConfig, model: PreTrainedModel) -> int:
    if config.max_store_bytes is not None:
        return config.max_store_bytes
    if model.device.type == "cuda":
        return torch.cuda.get_device_properties(model.device).total_memory // 10
    return 2**30
