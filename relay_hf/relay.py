"""`model.relay`, the handle of a patched model: its methods for the user, and those that replace the model's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .attention import interface
from .attention.forward import enter, leave
from .config import RelayConfig, check_count
from .display import Shown, as_html, as_line
from .errors import RelayError
from .generation.call import DryCall, GenerateCall, current_call, running, stop_if_dry
from .generation.explain import explain, read_arguments
from .generation.facts import CallArguments, CallFacts, PrefillInputs
from .generation.findings import ModelFindings
from .generation.generate_hook import generate
from .generation.hub import HubPrefixes
from .generation.prefill_hook import prefill
from .generation.save_load import load_prefixes, save_prefixes
from .generation.warm import read_prefix, warm
from .graphs import GraphPool
from .model.device import device_of
from .model.upstream.models import ENCODE, unencoded
from .model.upstream.names import PREFILL
from .model.view import ModelView
from .prefix import KeptPrefix
from .prefix.store import PrefixStore
from .reasons import Reason
from .report import Explanation, RelayReport, RelayStats

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

# Attributes that a copy or a pickle of a handle leaves out: stores start empty, and locks belong to one process.
_OF_THIS_ONE = frozenset({"_lock", "_open", "graphs", "store"})
_DEFAULT_STORE_BYTES = 2**30

Call = TypeVar("Call", bound=GenerateCall)


class Relay(HubPrefixes):
    """The handle that `patch_model` adds to a model. It composes the other modules, and none of them knows it.

    Attributes:
        model: the patched model.
        config: the options in force.
        store: the prefixes that are kept between calls.
        graphs: decode steps that were captured as CUDA graphs.
        findings: results of the model's earlier calls.
        last: the report of the latest generate(), or None before the first.
        shadowed: the values of the model's own `__dict__` under these names before the patch, or None.
        handles: handles of the hooks on the model.
    """

    def __init__(self, model: PreTrainedModel, config: RelayConfig, shadowed: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.findings = ModelFindings()
        self.last: RelayReport | None = None
        self.shadowed = shadowed
        self.handles: list[RemovableHandle] = []
        self._stats = RelayStats()
        self._begin()

    def _begin(self) -> None:
        """Set the attributes with which a new, a copied and an unpickled handle start."""
        self.store = PrefixStore(self._budget)
        self.graphs = GraphPool(self.model, self.config)
        self._open: set[GenerateCall] = set()
        self._lock = threading.Lock()

    def configure(self, config: RelayConfig) -> None:
        """Take other options. Prefixes stay, unless their budget changes."""
        before, self.config = self.config, config
        self.findings.forget()
        if before.max_store_bytes != config.max_store_bytes:
            self.store = PrefixStore(self._budget)
        self.graphs.configure(config)

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
        return self.store.prefixes

    def clear(self) -> None:
        """Drop all kept prefixes, pinned ones too, and CUDA graphs, and forget what was learnt about the model."""
        self.store.clear()
        self.graphs.clear()
        self.findings.forget()

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
            pin: keep it, even if its memory is needed for other prefixes, until `clear()`, a change of the model, or
                until its `pinned` is set to False.
            prefill_chunk_size: tokens that go through the model at once (at least 1); None: all. It bounds the memory
                that the prefill takes beside the KV (of which there are two copies while chunks are joined). Models
                with recurrent layers always take all tokens at once.
            progress: show a progress bar over the chunks; None: on a terminal and in a notebook.

        Returns:
            The kept prefix. The requests' ids must start with its `ids` for it to be used.

        Raises:
            TypeError, ValueError: an argument is wrong: no token ids, ids out of the vocabulary, more ids than the
                model's context, or a wrong chunk size.
            RelayError: prefixes of this model can't be kept now; the message says why.
        """
        ids = read_prefix(self.model, text_or_ids, tokenizer)
        if prefill_chunk_size is not None:
            check_count("prefill_chunk_size", prefill_chunk_size, least=1)
        with torch.no_grad(), self.open_call() as call:
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
        with torch.no_grad(), self.open_call() as call:
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
        with torch.no_grad(), self.open_call() as call:
            return load_prefixes(call, Path(path), mmap)

    def explain(
        self,
        input_ids: Tensor | Sequence[Sequence[int]] | None = None,
        attention_mask: Tensor | GenerationConfig | None = None,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Explanation:
        """What `generate()` would do with the same arguments, and why, without running it.

        generate()'s own code resolves the arguments, up to the call's prefill. No forward runs, no random number is
        drawn, and nothing is changed: a streamer gets nothing, and caches and kept prefixes stay as they are.

        Args:
            input_ids: `[B, L]` int64, or lists of ids: generate()'s first argument.
            attention_mask: `[B, L]`, a tensor. generate() takes it by name alone; any other object in the second place
                is generate()'s own second argument, a `generation_config`.
            *args: generate()'s other arguments by position.
            **kwargs: its arguments by name, such as `max_new_tokens=64`, `num_beams=4` or a cache; `input_ids` and
                `attention_mask` too.

        Returns:
            The report that the call would have, with a `tree` of the runs that its rows share. Printed, it has an
            indented line for each run. Bytes and graphs are not foretold. A call that computes before its prefill, or
            without one, is not relayed; then rows and prompt tokens are 0.

        Raises:
            ValueError: `input_ids` has not two dimensions.
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
        stock = self.stock("generate")
        args, kwargs = read_arguments(input_ids, attention_mask, args, kwargs)
        with self.open_dry_call(CallArguments.of(stock, args, kwargs)) as call:
            return explain(call, stock, args, kwargs)

    def __repr__(self) -> str:
        return as_line(self._shown())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(self._shown())

    def _shown(self) -> Shown:
        kind = type(self.model).__name__
        return Shown(kind, self.config.policy, self.prefixes, self.store.budget, self.stats(), self.last)

    # -- what replaces the model's methods ---------------------------------------------------------------------------

    def stock(self, name: str) -> Callable[..., Any]:
        """The method below ours, as it is now: a tracer may have been put on the class, or taken off, since."""
        own: Callable[..., Any] | None = self.shadowed.get(name)  # None also for what an older pickle did not shadow
        if own is not None:
            return own
        kind = type(self.model)
        found = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
        bound: Callable[..., Any] = found.__get__(self.model, kind) if hasattr(found, "__get__") else found
        return bound

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's generate(), with a report."""
        stop_if_dry()
        stock = self.stock("generate")
        report: RelayReport | None = None
        try:
            with self.open_call(CallArguments.of(stock, args, kwargs)) as call:
                try:
                    return generate(call, stock, args, kwargs)
                finally:
                    report = call.report
        except BaseException as error:  # the first look at the model may raise too, before there is a call
            report = report or RelayReport.untouched(Reason.RAISED_IN_CALL.of(error=type(error).__name__))
            raise
        finally:
            if report is not None:
                self._count(report)

    def encode(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """How generate() encodes images, and the inputs of an encoder-decoder model; a dry call encodes nothing."""
        call = current_call()
        if isinstance(call, DryCall):
            return unencoded(self.model, inputs_tensor, model_kwargs)
        return self.stock(ENCODE)(inputs_tensor, model_kwargs, *args, **kwargs)

    def prefill(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], is_first_iteration: bool = True
    ) -> Any:
        """The model's `_prefill`, with the shared prefix found, prefilled once and held once."""
        call = current_call()
        asked = PrefillInputs(input_ids, generation_config, model_kwargs, is_first_iteration)
        if call is None or call.facts.view.model is not self.model:  # a decoding loop, started without generate()
            return self.stock(PREFILL)(*asked)
        if isinstance(call, DryCall):
            call.stop(asked)
        return prefill(call, self.stock(PREFILL), asked)

    def train(self, mode: bool = True) -> nn.Module:
        """The model's train(). It drops kept prefixes, because training changes the model."""
        if mode or self.model.training:
            self.store.clear()
        return self.stock("train")(mode)

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Open the context of a forward that is given a RelayCache."""
        if torch.compiler.is_compiling():
            from .model import uncompiled

            return uncompiled.call(enter, self.model, self.config.backend, args, kwargs)
        stop_if_dry()
        return enter(self.model, self.config.backend, args, kwargs)

    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Close it, and check that every layer attended to its shared prefix. See `leave` for what is returned."""
        if torch.compiler.is_compiling():
            from .model import uncompiled

            return uncompiled.call(leave, self.model, output is not None)
        return leave(self.model, output is not None)

    def open_call(self, arguments: CallArguments | None = None) -> AbstractContextManager[GenerateCall]:
        """Within it a generate() call runs, or another method that runs forwards like one."""
        return self._opened(GenerateCall(self._facts(arguments or CallArguments())))

    def open_dry_call(self, arguments: CallArguments) -> AbstractContextManager[DryCall]:
        """Within it a generate() call runs that computes nothing."""
        return self._opened(DryCall(self._facts(arguments, dry=True)))

    def _facts(self, arguments: CallArguments, dry: bool = False) -> CallFacts:
        view = ModelView.of(self.model)
        self.findings.look(view.modules)
        return CallFacts(view, self.config, self.store, self.graphs, self.findings, arguments, dry)

    @contextmanager
    def _opened(self, call: Call) -> Iterator[Call]:
        try:
            with self._lock:
                self._open.add(call)
            with running(call):
                yield call
        finally:
            with self._lock:
                self._open.discard(call)

    def _count(self, report: RelayReport) -> None:
        with self._lock:
            self.last = report
            self._stats.add(report)

    def _budget(self) -> int:
        """Bytes that the store may hold. The store asks at its first use, when the model is on its final device."""
        if self.config.max_store_bytes is not None:
            return self.config.max_store_bytes
        device = device_of(self.model)
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory // 10
        return _DEFAULT_STORE_BYTES

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model keeps its patch; it starts with nothing kept."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_ONE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "findings" not in state:  # of an earlier version of 0.1.0
            known = state["model_refusal"], state["unexplained"], state["_told"]
            names = ("model", "config", "last", "shadowed", "handles", "_stats")
            state = {"findings": ModelFindings(*known), **{name: state[name] for name in names}}
        self.__dict__.update(state)
        self._begin()
        interface.register()
