"""Compile every row of the tile table for the chips it names, on any machine, and read what came out.

    python -m benchmarks.compile [--write] [--json FILE] [--chips sm_90 ...]

Registers, spills and shared memory are the assembler's own figures for the compiled kernel; loads and matrix
instructions are counted in its PTX and SASS. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import compiled
from benchmarks.options import output_file
from relay_hf.cli.output_file import write_output
from relay_hf.kernels.triton import tuning
from relay_hf.kernels.triton.decode import _decode_kernel
from relay_hf.kernels.triton.decode_own import _own_kernel, most_queries, parts_at_a_time
from relay_hf.kernels.triton.decode_own_few import _few_kernel, parts_at_once
from relay_hf.kernels.triton.merge import _MOST_PARTS, _merge_kernel
from relay_hf.kernels.triton.prefill import _prefill_kernel
from relay_hf.kernels.triton.tuning import Tile, choose

# Bytes of shared memory that a block may use (CUDA C++ Programming Guide, specifications by compute capability).
SHARED_LIMIT = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}
_THOROUGH = ("sm_80", "sm_90")  # where all features, and own splits, are compiled too: minutes for all chips
_MATRIX = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA)\b")
_INT32 = ("items", "uses", "shared_length", "row_parts", "row_segments", "segment_ids", "geometry")
_FLOAT = ("scale", "softcap")
_USUAL = ("OWN_START",)
_ALL = ("CAUSAL", "WINDOW", "SOFTCAP", "SINKS", "OWN_START", "OWN_LENGTH", "HOLES")
_OPTIONAL = {
    "own_start": "OWN_START",
    "own_length": "OWN_LENGTH",
    "own_mask": "HOLES",
    "sinks": "SINKS",
}


@dataclass(frozen=True)
class Job:
    """One compilation: a kernel with a row of the table on a chip, and the features that a call may use.

    `kernel` is the row's, or "own" for the second launch of a decode, or "split" for the first launch of one whose own
    tokens are split too.
    """

    chip: str
    kernel: str
    tile: Tile
    features: tuple[str, ...] = _USUAL

    @property
    def dtype(self) -> str:
        """Triton's name for the elements."""
        return "bf16" if self.tile.itemsize == 2 else "fp32"


@dataclass(frozen=True)
class Compiled:
    """What came out: registers of a thread, bytes spilled, bytes of shared memory, programs a multiprocessor holds."""

    chip: str
    kernel: str
    head_size: int
    dtype: str
    block_m: int
    block_n: int
    features: str
    registers: int
    spilled: int
    shared: int
    resident: int
    async_widths: tuple[int, ...]
    matrix: tuple[str, ...]


def jobs(chips: list[str]) -> Iterator[Job]:
    """The kernels of every row on its chips, as most calls are; on some also otherwise."""
    for tile in tuning.table():
        kernels = [tile.kernel, "own"] if tile.kernel == "decode" and is_for_own(tile) else [tile.kernel]
        for chip in (chip for chip in tile.chips if chip in chips):
            for kernel in kernels:
                yield Job(chip, kernel, tile)
                if chip in _THOROUGH:
                    yield Job(chip, kernel, tile, _ALL)
            if tile.kernel == "decode" and chip in _THOROUGH:
                yield Job(chip, "split", tile)


def is_for_own(tile: Tile) -> bool:
    """Whether a decode's second launch takes a row."""
    return tile.block_m <= most_queries(tile.head_size)


def compile_job(job: Job) -> Compiled:
    """Compile and read; the compiler's cache makes a second time quick."""
    tile = job.tile
    kernel = {"own": _own_kernel, "few": _few_kernel, "prefill": _prefill_kernel}.get(job.kernel, _decode_kernel)
    own = choose("decode", job.chip, tile.head_size, tile.itemsize, 1) if job.kernel == "split" else tile
    constants: dict[str, object] = {name: name in job.features for name in (*_ALL, "UPCAST")}
    constants |= {
        "KV_HEADS": 8,
        "GROUP": min(4, tile.block_m),
        "HEAD_SIZE": tile.head_size,
        "VALUE_SIZE": tile.head_size,
        "BLOCK_D": tile.head_size,
        "BLOCK_DV": tile.head_size,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.own_block_n if job.kernel == "own" else tile.block_n,
        "OWN_BLOCK_M": own.block_m,
        "OWN_BLOCK_N": tile.own_block_n,
        "PARTS": parts_at_once(tile.block_m) if job.kernel == "few" else parts_at_a_time(tile),
        "ALIGNMENT": 16 // tile.itemsize,
        "SPLIT_OWN": job.kernel == "split",
        "QUERIES": tile.block_m,
        "BLOCK_Q": tile.block_m,
        "STAGES": tile.num_stages,
        "OVERLAP": _overlaps(job.chip),
    }
    binary = _compile(kernel, job.chip, job.dtype, constants, tile.num_warps, tile.num_stages)
    usage, sass = _resources(binary.asm["cubin"])
    widths = re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, (\w+)[,;]", binary.asm["ptx"])
    return Compiled(
        chip=job.chip,
        kernel=job.kernel,
        head_size=tile.head_size,
        dtype=job.dtype,
        block_m=tile.block_m,
        block_n=tile.block_n,
        features="all" if job.features == _ALL else "",
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=binary.metadata.shared,
        resident=_resident(job.chip, usage["REG"], binary.metadata.shared, tile.num_warps),
        async_widths=tuple(sorted({int(width, 0) for width in widths})),
        matrix=tuple(sorted(set(_MATRIX.findall(sass)))),
    )


def compile_merge(chip: str) -> Compiled:
    """The merge kernel at its largest block of parts."""
    constants = {"HEADS": 32, "VALUE_SIZE": 128, "BLOCK_DV": 128, "PARTS": _MOST_PARTS, "SINKS": True}
    constants["OVERLAP"] = _overlaps(chip)
    binary = _compile(_merge_kernel, chip, "bf16", constants, 4, 3)
    usage, _ = _resources(binary.asm["cubin"])
    spilled = usage["STACK"] + usage["LOCAL"]
    resident = _resident(chip, usage["REG"], binary.metadata.shared, 4)
    numbers = (usage["REG"], spilled, binary.metadata.shared, resident)
    return Compiled(chip, "merge", 128, "bf16", 1, _MOST_PARTS, "all", *numbers, (), ())


def _overlaps(chip: str) -> bool:
    return int(chip.removeprefix("sm_")) >= 90


def _resident(chip: str, registers: int, shared: int, warps: int) -> int:
    """Programs that a multiprocessor holds at a time, by registers and shared memory."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, (SHARED_LIMIT[chip] + 1024) // (shared + 1024))


def _compile(kernel, chip: str, dtype: str, constants: dict, warps: int, stages: int):  # type: ignore[no-untyped-def]
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        stem = name.removesuffix("_ptr")
        if name in constants:
            signature[name], values[name] = "constexpr", constants[name]
        elif stem == name:
            signature[name] = "fp32" if name in _FLOAT else "i32"
        elif stem in _OPTIONAL and not constants.get(_OPTIONAL[stem]):
            signature[name], values[name] = "constexpr", None
        else:
            signature[name] = f"*{_element(kernel, stem, dtype)}"
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    target = GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)
    return triton.compile(
        source, target=target, options={"num_warps": warps, "num_stages": stages, "maxnreg": tuning.MAX_REGISTERS}
    )


def _element(kernel: object, stem: str, dtype: str) -> str:
    if stem in _INT32:
        return "i32"
    if stem in ("addresses", "own_start", "own_length"):
        return "i64"
    if stem == "own_mask":
        return "i1"
    parts = stem.startswith("part_") or (kernel is _decode_kernel and stem in ("out", "lse"))
    return "fp32" if parts else dtype


def _resources(cubin: bytes) -> tuple[dict[str, int], str]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    return {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}, sass


def _end_with_parent() -> None:
    """End this worker when the process that started it ends, however that ends: it would wait for work for good."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Compile all, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", default=list(SHARED_LIMIT), choices=list(SHARED_LIMIT))
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    parser.add_argument("--write", action="store_true", help="keep the figures of all chips in benchmarks/results")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.write and options.chips != list(SHARED_LIMIT):
        parser.error("--write keeps the figures of all chips; leave --chips out")
    with ProcessPoolExecutor(options.workers, initializer=_end_with_parent) as pool:
        done = [*pool.map(compile_job, jobs(options.chips)), *pool.map(compile_merge, options.chips)]
    if options.write:
        compiled.keep([asdict(one) for one in done])
    if options.json:
        text = json.dumps([asdict(one) for one in done], indent=1) + "\n"
        write_output(options.json, lambda to: to.write_text(text, encoding="utf-8"))
    table = Table(
        "chip",
        "kernel",
        "head",
        "dtype",
        "tile",
        "features",
        "registers",
        "spilled",
        "shared KiB",
        "resident",
        "matrix",
    )
    for one in done:
        table.add_row(
            one.chip,
            one.kernel,
            str(one.head_size),
            one.dtype,
            f"{one.block_m} x {one.block_n}",
            one.features,
            str(one.registers),
            str(one.spilled),
            f"{one.shared / 1024:.0f}",
            str(one.resident),
            " ".join(one.matrix),
            style="red" if one.spilled or one.shared > SHARED_LIMIT[one.chip] else None,
        )
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
