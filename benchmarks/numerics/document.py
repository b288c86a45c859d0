"""docs/numerics.md: written from results, and read back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import relay_hf
from benchmarks.document.pages import filled
from relay_hf.cli.environment import environment

from .results import BOUND, Result
from .subjects import STEPS, SUBJECTS, Subject

PATH = Path(__file__).parents[2] / "docs" / "numerics.md"

_HEADER = """\
| model | dtype | seeds | stock | patched | ratio | median of the seeds' ratios | within |
|---|---|---|---|---|---|---|---|
"""
_ROUTED_HEADER = """\
| model | dtype | seeds | stock | patched | ratio | median of the seeds' ratios | jumps, stock / patched | within |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What the document says of a model in a dtype."""

    ratio: float
    deviation: float
    median: float


def write(results: Sequence[Result], path: Path = PATH) -> None:
    """Write the document."""
    path.write_text(render(results), encoding="utf-8")


def render(results: Sequence[Result]) -> str:
    """The document's text."""
    usual = Subject("", "")
    system = environment()
    text = f"""\
# Numerics in half precision

In bfloat16 and float16 the patched model's logits are as close to float32's as stock's are: the root mean square of
their errors is at most {BOUND} times stock's, whatever the family. `python -m benchmarks.numerics --write` measures
this and writes this page; `--small` is the form that the tests run.

## How it is measured

The reference is stock `generate()` in float32 with the weights that half precision has, so that what is measured is
rounding in the computation. Stock and patched (`policy="always"`, nothing kept from earlier calls) run in half
precision. All three are given the same tokens: prompts of {usual.prefix} shared tokens and {min(usual.own)} to
{max(usual.own)} of each of {len(usual.own)} rows' own, left-padded, and then {STEPS} tokens that a logits processor
forces. Errors are those of the logits after the prompt and after each forced token but the last, over the whole
vocabulary.

The models are those of `relay_hf.testing`: two layers, 32 wide, random weights drawn ten times wider than Transformers'
default, so that attention is far from uniform. Each seed has other weights, other prompts and other forced tokens. The
columns `stock` and `patched` are root mean squares over all seeds, rows, steps and the vocabulary, relative to that of
the logits themselves. `ratio` is one over the other, with its standard error over the seeds; beside it stands the
median of the ratios that the seeds have by themselves.

CPU, PyTorch {torch.__version__}, Transformers {transformers.__version__}, relay_hf {relay_hf.__version__},
{system["hardware"]["cpu"]}.

## Real weights

A trained model has what random weights have not: attention that is nearly all on one token, single activations ten
thousand times the usual, words that are nearly tied. SmolLM2-135M-Instruct is given 32 conversations, and the 1,023
tokens that stock answers in float32. The divergence is that of Kullback and Leibler, of the next word's distribution
from float32's, in nats a token, with its standard error over the answers. Float32 keeps its own weights here, unlike in
the tables below, so for both the divergence includes what rounding the weights does. The last two columns differ by
three and by two of the tokens, which is chance. [The same answers](quality.md) shows what this does to answers.

<!-- table: divergence -->
<!-- end -->

## Rounding

In families with experts every token gets every expert here, so that no choice hangs on a rounding.

{_table([each for each in results if not each.routed])}
Where it is over 1, it is for this: each part of attention, the shared one and a row's own, comes from PyTorch's CPU
kernel rounded to half precision; the two are merged in float32, and rounded again. Stock rounds once. Where scores are
computed in plain matrix products (a softcap, unequal head sizes), the parts stay in float32 until they are merged.

## Experts that are chosen

Where a router chooses the experts, two of four here, a rounding can choose another one, in stock's run or in ours, and
then the logits are off by a hundred times what rounding does. A jump is such an error: over five times the median of
stock's. Whether it falls to stock or to the patched model is chance, and where it falls into the shared prefix it moves
all rows of its seed. So a seed's ratio can be 0.03 or 30, the pooled ratio takes very many seeds to settle, and its
standard error says how far it has. It is to be within the bound up to twice that; the median has no such allowance.

{_routed_table([each for each in results if each.routed])}"""
    return filled(text)


def read(path: Path = PATH) -> dict[tuple[str, str], Row]:
    """The rows of the document, by model and dtype."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        ratio = re.fullmatch(r"([\d.]+) ± ([\d.]+)", cells[5]) if len(cells) > 6 else None
        if ratio:
            rows[cells[0], cells[1]] = Row(float(ratio[1]), float(ratio[2]), float(cells[6]))
    return rows


def expected_rows() -> set[tuple[str, str]]:
    """The rows that a full run gives."""
    return {(subject.name, dtype) for subject in SUBJECTS for dtype in ("bfloat16", "float16")}


def _table(results: Sequence[Result]) -> str:
    return _HEADER + "".join(f"{_cells(each)} {_yes(each)} |\n" for each in results)


def _routed_table(results: Sequence[Result]) -> str:
    lines = (f"{_cells(each)} {each.jumps[0]} / {each.jumps[1]} | {_yes(each)} |\n" for each in results)
    return _ROUTED_HEADER + "".join(lines)


def _cells(result: Result) -> str:
    numbers = f"{result.stock:.2e} | {result.patched:.2e} | {result.ratio:.3f} ± {result.deviation:.3f}"
    return f"| {result.subject} | {result.dtype} | {result.seeds} | {numbers} | {result.median:.3f} |"


def _yes(result: Result) -> str:
    return "yes" if result.within else "**no**"
