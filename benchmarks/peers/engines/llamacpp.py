"""llama.cpp by its C interface: the prefix goes through the model once, and all rows refer to its cells.

The KV cache is unified: a cell belongs to as many sequences as start with its token, and `seq_cp` copies no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ..jobs import Job, Piece
from . import Answer, Setup, gguf_file
from .llamacpp_batch import Batch

_KV = {"float32": 0, "float16": 1}  # ggml's numbers of its types
_QUANTIZED = {"Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M}
_PAD = 256  # cells that attention reads at once
_ERROR = 4  # ggml's number of the level
_complaints = ["it said nothing"]


@lib.llama_log_callback
def _listen(level: int, text: bytes, data: Any) -> None:
    """Keep what llama.cpp says of an error: its functions give only that there was one."""
    if level == _ERROR:
        _complaints.append(text.decode(errors="replace").strip())


class LlamaCpp:
    """A model and a context, of which a job uses the first cells."""

    def __init__(self, setup: Setup) -> None:
        self._options = setup.options
        self._vocab = setup.shape["vocab"]
        self._threads = setup.threads
        parameters = lib.llama_model_default_params()
        parameters.load_mode = lib.LLAMA_LOAD_MODE_NONE  # weights in memory of its own, not in a mapped file
        path = str(_file(setup)).encode()
        self._model = _there(lib.llama_model_load_from_file(path, parameters), "llama_model_load_from_file")
        most = -(-(setup.cells + _PAD) // _PAD) * _PAD
        self._context = self._new_context(most, setup.rows)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = Batch(most)

    def about(self) -> dict[str, Any]:
        """Versions, instruction sets and settings, for the record."""
        instructions = lib.llama_print_system_info().decode().strip(" |")
        return {"version": f"llama-cpp-python {version('llama_cpp_python')}", "instructions": instructions}

    def prepare(self, job: Job, before: Job | None) -> Answer:
        """The kept pieces go through the model ahead, if `before` is given. Nothing else is kept."""
        lib.llama_memory_clear(self._memory, False)
        levels = job.levels
        if before is not None:
            for level in (level for level in levels if level[0].kept):
                self._prefill(level)
            levels = [level for level in levels if not level[0].kept]
        return lambda: self._answer(job, levels)

    def _new_context(self, cells: int, rows: int) -> Any:
        wanted = lib.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = cells
        wanted.n_ubatch = min(self._options.get("ubatch", 512), cells)
        wanted.n_seq_max = rows
        wanted.n_threads = wanted.n_threads_batch = self._threads
        wanted.type_k = wanted.type_v = _KV[self._options["kv"]]
        wanted.flash_attn_type = int(self._options["flash"])
        wanted.kv_unified = True
        return _there(lib.llama_init_from_model(self._model, wanted), "llama_init_from_model")

    def _prefill(self, level: Sequence[Piece]) -> dict[Piece, int]:
        """Run the pieces of a level as one batch; the number of each piece's logits."""
        self._batch.clear()
        for piece in level:
            self._batch.add(piece.ids, piece.start, piece.rows[0], last=not piece.kept)
        self._batch.decode(self._context)
        for piece in level:
            for row in piece.rows[1:]:
                lib.llama_memory_seq_cp(self._memory, piece.rows[0], row, piece.start, piece.end)
        return {piece: number for number, piece in enumerate(level)}

    def _answer(self, job: Job, levels: Sequence[Sequence[Piece]]) -> list[list[int]]:
        for level in levels:
            outputs = self._prefill(level)
        ends = [job.last_piece(row) for row in range(job.rows)]
        choose = _Sampler(self._context, job.top_k) if job.top_k else self._best
        tokens = [choose([outputs[end] for end in ends])]
        for step in range(job.new - 1):
            self._batch.clear()
            for row, token in enumerate(tokens[-1]):
                self._batch.add([token], ends[row].end + step, row, last=True)
            self._batch.decode(self._context)
            tokens.append(choose(range(job.rows)))
        return [list(row) for row in zip(*tokens, strict=True)]

    def _best(self, outputs: Sequence[int]) -> list[int]:
        """The most probable token of each output of the latest batch."""
        logits = lib.llama_get_logits(self._context)
        best = _array(logits, max(outputs) + 1, self._vocab).argmax(axis=1)
        return [int(best[output]) for output in outputs]


class _Sampler:
    """llama.cpp's own sampler of the most probable `top_k` tokens."""

    def __init__(self, context: Any, top_k: int) -> None:
        self._context = context
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_top_k(top_k))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_dist(0))

    def __del__(self) -> None:
        lib.llama_sampler_free(self._chain)

    def __call__(self, outputs: Sequence[int]) -> list[int]:
        """A token for each output of the latest batch; negative numbers count from the last one."""
        count = max(outputs) + 1
        return [lib.llama_sampler_sample(self._chain, self._context, output - count) for output in outputs]


def load(setup: Setup) -> LlamaCpp:
    """The model of the contender's types, `weights` and `kv`, with or without llama.cpp's `flash` attention."""
    lib.llama_log_set(_listen, None)
    lib.llama_backend_init()
    return LlamaCpp(setup)


def _file(setup: Setup) -> Path:
    wanted = setup.options["weights"]
    if wanted not in _QUANTIZED:
        return setup.made(
            f"{wanted}.gguf", lambda path: gguf_file.write(load_file(setup.weights), setup.shape, path, wanted)
        )
    exact = setup.made("float32.gguf", lambda path: gguf_file.write(load_file(setup.weights), setup.shape, path))

    def quantize(path: Path) -> None:
        parameters = lib.llama_model_quantize_default_params()
        parameters.ftype, parameters.nthread = _QUANTIZED[wanted], setup.threads
        if failed := lib.llama_model_quantize(str(exact).encode(), str(path).encode(), parameters):
            raise RuntimeError(f"llama_model_quantize() gave {failed} for {wanted}: {_complaints[-1]}")

    return setup.made(f"{wanted}.gguf", quantize)


def _there(found: Any, function: str) -> Any:
    if not found:
        raise RuntimeError(f"{function}() gave nothing: {_complaints[-1]}")
    return found


def _array(pointer: Any, rows: int, columns: int) -> NDArray[np.float32]:
    return np.ctypeslib.as_array(pointer, shape=(rows, columns))
