"""The handle that a patched model carries as `model.relay`."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .attention import interface
from .attention.context import active_frame
from .attention.forward import close_frame
from .attention.hooks import enter, leave
from .config import RelayConfig, check_count
from .display import as_html, as_line
from .errors import RelayError
from .generation.call import GenerateCall, current_call
from .generation.explain import explain
from .generation.finish import finish, guarded
from .generation.prefill_hook import prefill
from .generation.save_load import load_prefixes, save_prefixes
from .generation.warm import read_prefix, warm
from .graphs import GraphPool, with_criterion
from .model.attention_choice import attention_configs
from .model.device import autocast_of, device_of, is_out_of_memory
from .model.fingerprint.module_state import all_modules
from .model.upstream.models import PREFILL, default_cache, text_config
from .model.upstream.names import cache_name
from .ops import resolve_backend
from .prefix import KeptPrefix
from .prefix.store import PrefixStore
from .reasons import Reason, Refusal
from .report import Explanation, RelayReport, RelayStats

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

# What of a handle no copy and no file takes along.
_OF_THIS_ONE = frozenset({"_lock", "_open", "_signature", "stock"})


class Relay:
    """What `patch_model` adds to a model: its hooks, its kept prefixes, its reports.

    Attributes:
        model: the patched model.
        config: the options in force.
        keeper: what is kept between calls.
        graphs: decode steps that were captured as CUDA graphs.
        last: the report of the latest generate(), or None before the first.
        model_refusal: why no call of this model is relayed, once a relayed forward has shown it.
        unexplained: relayed prefills that raised something unforeseen where stock did not.
        stock: the methods that the model had, by name.
        shadowed: what stood in the model's own `__dict__` under those names, or None.
        handles: of the hooks on the model.
    """

    def __init__(self, model: PreTrainedModel, config: RelayConfig, shadowed: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.keeper = self._new_keeper()
        self.graphs = GraphPool(self)
        self.last: RelayReport | None = None
        self.model_refusal: Refusal | None = None
        self.unexplained = 0
        self.shadowed = shadowed
        self.stock = self._find_stock()
        self.handles: list[RemovableHandle] = []
        self._stats = RelayStats()
        self._told: set[str] = set()
        self._open: set[GenerateCall] = set()
        self._lock = threading.Lock()
        self._signature: tuple[Callable[..., Any], Mapping[str, inspect.Parameter]] | None = None

    def configure(self, config: RelayConfig) -> None:
        """Take other options. Prefixes stay, unless their budget is another."""
        before, self.config = self.config, config
        self._forget_refusal()
        if before.max_store_bytes != config.max_store_bytes:
            self.keeper = self._new_keeper()
        self.graphs.clear()

    def retire(self) -> None:
        """Relay no call from now on.

        Raises:
            RelayError: a call runs now, in this thread or another one.
        """
        with self._lock:
            if self._open:
                raise RelayError(
                    f"model can't be unpatched while it generates; {len(self._open)} of its calls run now, in this "
                    "thread or others. Let them end first, or turn relaying off for the calls to come with "
                    "patch_model(model, policy='off')."
                )
            self.config = RelayConfig(policy="off")

    # -- for the user ------------------------------------------------------------------------------------------------

    def stats(self) -> RelayStats:
        """Totals since the model was patched."""
        with self._lock:
            return replace(self._stats)

    @property
    def prefixes(self) -> tuple[KeptPrefix, ...]:
        """The kept prefixes, the least recently used first."""
        return self.keeper.prefixes

    def clear(self) -> None:
        """Drop all kept prefixes, pinned ones too, and CUDA graphs, and forget what was learnt about the model."""
        self.keeper.clear()
        self.graphs.clear()
        self._forget_refusal()

    def warm(
        self,
        text_or_ids: str | Sequence[int] | Tensor,
        tokenizer: Any = None,
        *,
        pin: bool = False,
        prefill_chunk_size: int | None = 4096,
        progress: bool | None = None,
    ) -> KeptPrefix:
        """Prefill and keep a prefix ahead of its first request.

        Args:
            text_or_ids: the prefix: token ids (`[P]` or `[1, P]`), or text, which needs `tokenizer`.
            tokenizer: turns text into ids as it does for the requests to come, special tokens included.
            pin: keep it whatever else is to be kept, until `clear()`, a change of the model, or its `pinned` set to
                False.
            prefill_chunk_size: tokens that go through the model at once (at least 1), which bounds the memory that the
                prefill takes beside the KV (of which there are two copies while chunks are joined); None: all. Models
                with recurrent layers always take all at once.
            progress: show a progress bar over the chunks; None: on a terminal and in a notebook.

        Returns:
            The kept prefix. The requests' ids must start with its `ids` for it to be used.

        Raises:
            TypeError, ValueError: no token ids, ids out of the vocabulary, or more than the model's context; no such
                chunk.
            RelayError: prefixes of this model can't be kept now; it says why.
        """
        ids = read_prefix(self.model, text_or_ids, tokenizer)
        if prefill_chunk_size is not None:
            check_count("prefill_chunk_size", prefill_chunk_size, least=1)
        with torch.no_grad(), self.open_call():
            return warm(self, ids, pin, prefill_chunk_size, progress)

    def save(
        self, path: str | os.PathLike[str], prefixes: KeptPrefix | Collection[KeptPrefix] | None = None
    ) -> tuple[KeptPrefix, ...]:
        """Write kept prefixes to a file, for another process of the same model.

        Args:
            path: of the file, a safetensors file whatever its name; one that is there is replaced as a whole. The file
                holds the prefixes' token ids, so it is as confidential as the prompts are.
            prefixes: the one, or those, to be written, of `prefixes`, with what they extend; None: all. All that
                requests have left is among these too.

        Returns:
            The prefixes that were written, each after the one that it extends.

        Raises:
            RelayError: nothing is kept, or the model's configuration can't be written.
            PrefixFileError: what describes the tensors takes far more than they do, which no reader would take.
            ValueError: `prefixes` is empty, or one of them is not kept any more; or no path has such a name.
            OSError: the file can't be written, or something else than a file is at its path.
        """
        with torch.no_grad(), self.open_call():
            return save_prefixes(self, Path(path), [prefixes] if isinstance(prefixes, KeptPrefix) else prefixes)

    def load(self, path: str | os.PathLike[str], *, mmap: bool = False) -> tuple[KeptPrefix, ...]:
        """Keep the prefixes of a file that `save` has written, on the device that this model is on.

        All is checked first: that every byte is what was written, and that it is of this very model: type,
        configuration, modules, all weights, buffers and adapters, dtype, autocast, and version of Transformers.
        Load files only from those you trust: whoever writes one can write what they like for keys and values.

        Args:
            path: of the file.
            mmap: leave the tensors mapped to the file, so that processes on one machine share their memory; on a CPU.
                The file must then not be written to in place, nor cut short, while it is in use: that can end the
                process. False: they are copied, and a file that is cut short meanwhile is an error.

        Returns:
            The prefixes, each after the one that it extends; those that were pinned are pinned again.

        Raises:
            PrefixFileError: the file is damaged, of another format, or of another model; it says which.
            RelayError: prefixes of this model can't be kept now, or not so many bytes.
            ValueError: no path has such a name.
            OSError: the file can't be read, or is none.
        """
        with torch.no_grad(), self.open_call():
            return load_prefixes(self, Path(path), mmap)

    def explain(self, input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None = None) -> Explanation:
        """What `generate(input_ids, attention_mask=...)` would do, and why, without running it.

        Args:
            input_ids: `[B, L]`, the rows as the model will run them: a prompt with `num_return_sequences=4` stands
                four times.
            attention_mask: `[B, L]`, or None when no token is padding.

        Returns:
            The report that the call would have, with a `tree` of what its rows share; printed, it is an indented line
            for each run of tokens.
        """
        with torch.no_grad(), self.open_call():
            return explain(self, torch.as_tensor(input_ids), attention_mask)

    def __repr__(self) -> str:
        return as_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(self)

    # -- what replaces the model's methods ---------------------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's generate(), with a report."""
        with self.open_call() as call, self.graphs.in_the_way() as used:
            call.note_arguments(self.stock["generate"], args, kwargs)
            if used and not call.own_loop and not call.names_cache:
                kwargs = with_criterion(args, kwargs)
            try:
                outputs = call.with_given_cache(self.stock["generate"](*args, **kwargs))
                if call.stepper is not None:
                    call.stepper.check()
                self.keep_row(call)
                return outputs
            except BaseException as error:
                call.report = call.report or RelayReport.untouched(Reason.RAISED_IN_CALL.of(error=type(error).__name__))
                raise
            finally:
                self._count(finish(self, call))

    def prefill(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `_prefill`, with the shared prefix found, prefilled once and held once."""
        return prefill(self, self.stock[PREFILL], *args, **kwargs)

    def train(self, mode: bool = True) -> nn.Module:
        """The model's train(): what is or was trained makes kept prefixes stale."""
        if mode or self.model.training:
            self.keeper.clear()
        return self.stock["train"](mode)

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Open the frame of a forward that has a RelayCache; a static decode step gets no mask, or prepared ones."""
        if torch.compiler.is_compiling():
            from .attention import uncompiled

            return uncompiled.enter(self, args, kwargs)
        return enter(self, args, kwargs)

    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Close it, and check that every layer attended to its segments."""
        if torch.compiler.is_compiling():
            from .attention import uncompiled

            return uncompiled.leave(self, output is not None)
        return leave(self, output is not None)

    def _count(self, report: RelayReport) -> None:
        with self._lock:
            self.last = report
            self._stats.add(report)

    def is_news(self, reason: str) -> bool:
        """Whether a reason is told for the first time."""
        with self._lock:
            known = reason in self._told
            self._told.add(reason)
        return not known

    # -- for the prefill ---------------------------------------------------------------------------------------------

    @contextmanager
    def open_call(self) -> Iterator[GenerateCall]:
        """A generate() call, or what runs forwards like one."""
        modules = all_modules(self.model)
        call = GenerateCall(self, modules, attention_configs(modules))
        before, outer = current_call.get(), active_frame.get()
        try:
            with self._lock:
                self._open.add(call)
            current_call.set(call)
            yield call
        except BaseException as error:
            if is_out_of_memory(error):
                self.free_memory()
            raise
        finally:
            try:
                # An interrupt (not an Exception) passes the forward hooks by: what they left open is closed here.
                while (frame := active_frame.get()) is not outer and frame is not None:
                    close_frame(frame)
            finally:
                current_call.set(before)
                with self._lock:
                    self._open.discard(call)
                call.stepper = None  # which refers to the call: the memory of an interrupted one is free at once

    def free_memory(self) -> None:
        """Drop what is kept for later calls and not pinned: a call that runs now lacks the memory."""
        self.keeper.release()
        self.graphs.clear()

    def keep_row(self, call: GenerateCall) -> None:
        """Keep the single row of a call, if it is to be; whatever goes wrong with that, the call goes on."""
        transcript, call.transcript = call.transcript, None
        if transcript is None:
            return
        with guarded("the row of this call could not be kept for later ones"), torch.no_grad():
            transcript.keep()

    @property
    def text_config(self) -> PreTrainedConfig:
        """The configuration of the decoder."""
        return text_config(self.model)

    @property
    def cache_name(self) -> str:
        """What the model's forward calls its cache."""
        return cache_name(self.forward_inputs)

    def default_cache(self) -> DynamicCache | None:
        """The cache that generate() makes for the model; None where the model makes its own."""
        return default_cache(self.model, self.forward_inputs)

    @property
    def forward_inputs(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the model's forward, by name: worked out once, for that takes 0.1 ms."""
        forward, known = self.model.forward, self._signature
        if known is None or known[0] != forward:
            known = self._signature = forward, inspect.signature(forward).parameters
        return known[1]

    @property
    def backend(self) -> str:
        """What is expected to compute relayed attention.

        Raises:
            RuntimeError: the backend that is asked for by name can't.
        """
        dtype = autocast_of(self.model) or self.model.dtype
        return resolve_backend(self.config.backend, device_of(self.model), dtype)

    def _new_keeper(self) -> PrefixStore:
        return PrefixStore(self._budget)

    def _find_stock(self) -> dict[str, Callable[..., Any]]:
        """The methods below ours; not read from the model, where ours may stand already while it is unpickled."""
        kind = type(self.model)
        return {name: own or MethodType(getattr(kind, name), self.model) for name, own in self.shadowed.items()}

    def _forget_refusal(self) -> None:
        self.model_refusal, self.unexplained = None, 0

    def _budget(self) -> int:
        if self.config.max_store_bytes is not None:
            return self.config.max_store_bytes
        device = device_of(self.model)
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory // 10
        return 2**30

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model keeps its patch; its keeper starts empty."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_ONE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open, self._lock, self._signature = set(), threading.Lock(), None
        self.stock = self._find_stock()
        interface.register()
