"""Whether two results of generate() are the same: tokens, logits, scores, caches, errors, random numbers drawn.

Bounds are relative to the largest logit, at least 1. A tiny model's logit is the end of a few layers of some 20
roundings each, over sums of at most 100 terms: about 8,000 half-units, if all add up; norms and softmax can amplify
what comes before them, by less than a hundred here. So 8e5 * 1.1e-16 = 9e-11 in float64, well under the 1e-8 that is
asked for; one rounding to float32 on the way would give 6e-8 and more. In float32 the same worst case is of no use, but
roundings add up like a random walk (the square root of 8,000), amplified by ten or so: 5e-5, under the 1e-4 that is
asked for; a wrong mask or position moves a logit by 0.1. Measured: up to 2e-14 and 4e-6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import relay_hf
from relay_hf.model.upstream.names import CACHE
from tests.support.foretold import differences

from .rows import Batch

BOUNDS = {"float64": 1e-8, "float32": 1e-4}
_REAL_SCORE = 1e6  # larger ones stand for "never", as -inf does


@dataclass
class Result:
    """What a generate() call gave, or what it raised; the random state after it; the relay's report.

    `said`: what `explain` has said ahead of the call, or the error that it raised; None for stock. `left_as_it_was`:
    whether it changed nothing. `learnt`: why the model is unfit, if the call's prefill was the first to show that.
    """

    output: Any = None
    error: str | None = None
    random_state: Tensor = field(default_factory=torch.get_rng_state)
    report: Any = None
    said: Any = None
    left_as_it_was: bool = True
    learnt: str | None = None


def foretold(ours: Result) -> str | None:
    """How what `explain` said differs from what the call then did, or None."""
    if not ours.left_as_it_was:
        return "explain: changed something"
    if isinstance(ours.said, str):  # what it raised
        return None if ours.said == ours.error else f"explain: raised {ours.said}; the call: {ours.error or 'no error'}"
    if ours.error or ours.learnt == ours.report.reason:
        return None
    wrong = differences(ours.said, ours.report)
    return f"explain: said {ours.said!r} of {', '.join(wrong)}; the call: {ours.report!r}" if wrong else None


@dataclass(frozen=True)
class Difference:
    """How two results differ: "mismatch", "near-tie", or "raised" where both raised the same."""

    kind: str
    detail: str


def compare(
    stock: Result, ours: Result, options: dict[str, Any], batch: Batch | None, dtype: str, routed: bool
) -> tuple[Difference | None, float]:
    """The difference, if there is one, and the largest error relative to its bound's scale."""
    if stock.error or ours.error:
        same = stock.error == ours.error
        detail = stock.error if same else f"stock: {stock.error or 'no error'}; ours: {ours.error or 'no error'}"
        return Difference("raised" if same else "mismatch", detail or ""), 0.0
    if isinstance(stock.output, Tensor):
        if torch.equal(stock.output, ours.output):
            return _random_numbers(stock, ours), 0.0
        return Difference("mismatch", _tokens(stock.output, ours.output)), 0.0
    found = _Comparison(stock.output, ours.output, options, batch, dtype, routed)
    return found.difference() or _random_numbers(stock, ours), found.error


def _random_numbers(stock: Result, ours: Result) -> Difference | None:
    same = torch.equal(stock.random_state, ours.random_state)
    return None if same else Difference("mismatch", "the random numbers that were drawn differ in count")


def _tokens(stock: Tensor, ours: Tensor) -> str:
    if stock.shape != ours.shape:
        return f"tokens: shape {tuple(ours.shape)} in place of {tuple(stock.shape)}"
    row, column = (stock != ours).nonzero()[0].tolist()
    return f"tokens: {int(ours[row, column])} in place of {int(stock[row, column])} in row {row}, column {column}"


class _Comparison:
    """Two outputs with return_dict_in_generate."""

    def __init__(
        self, stock: Any, ours: Any, options: dict[str, Any], batch: Batch | None, dtype: str, routed: bool
    ) -> None:
        self.stock, self.ours, self.options, self.batch = stock, ours, options, batch
        self.bound = BOUNDS[dtype]
        self.ties = dtype != "float64"  # in float64 rounding decides nothing
        self.beams = options.get("num_beams", 1) > 1
        self.routed = routed
        self.error = 0.0

    def difference(self) -> Difference | None:
        """The first thing that differs, in the order of the loop."""
        if self.ties and not self.beams:
            return self._row_by_row() or self._caches()
        same_tokens = self.stock.sequences.shape == self.ours.sequences.shape and torch.equal(
            self.stock.sequences, self.ours.sequences
        )
        for name in ("logits", "scores"):
            for step, (expected, got) in enumerate(zip(self._steps(name, 0), self._steps(name, 1), strict=False)):
                if not self._close(expected, got):
                    kind = "experts" if self.routed else "beams" if self.beams and step else name
                    return self._mismatch(kind, f"{name} of step {step} differ by {self._worst(expected, got):.1e}")
        if not same_tokens:
            return self._mismatch(
                "beams" if self.beams else "tokens", _tokens(self.stock.sequences, self.ours.sequences)
            )
        return self._others() or self._caches()

    def _steps(self, name: str, which: int) -> tuple[Tensor, ...]:
        return getattr((self.stock, self.ours)[which], name, None) or ()

    def _mismatch(self, kind: str, detail: str) -> Difference:
        return Difference("mismatch", detail if detail.startswith(kind) else f"{kind}: {detail}")

    def _scale(self, expected: Tensor) -> float:
        real = expected[expected.isfinite() & (expected.abs() < _REAL_SCORE)]
        return max(float(real.abs().max()), 1.0) if real.numel() else 1.0

    def _worst(self, expected: Tensor, got: Tensor) -> float:
        """The largest difference over the scale; infinite where the shapes or the infinities differ."""
        if expected.shape != got.shape:
            return float("inf")
        expected, got = expected.double(), got.double()
        same = (expected == got) | (expected.isnan() & got.isnan())
        off = (expected - got).abs().masked_fill(same, 0.0)
        off = off.masked_fill(off.isnan(), float("inf"))
        return float(off.max()) / self._scale(expected) if off.numel() else 0.0

    def _close(self, expected: Tensor, got: Tensor) -> bool:
        worst = self._worst(expected, got)
        if worst <= self.bound:
            self.error = max(self.error, worst)
            return True
        return False

    def _row_by_row(self) -> Difference | None:
        """Rows are compared up to their first near-tie: after it they may go on differently."""
        tie = None
        prompt = self.stock.sequences.shape[1] - len(self.stock.logits)
        for row in range(len(self.stock.sequences)):
            tokens = [out.sequences[row, prompt:].tolist() for out in (self.stock, self.ours)]
            for step in range(min(map(len, tokens))):
                found = self._row_step(row, step, tokens[0][step], tokens[1][step])
                if found is not None and found.kind == "mismatch":
                    return found
                tie = tie or found
                if found is not None:
                    break
            else:
                if len(tokens[0]) != len(tokens[1]) and tie is None:
                    return self._mismatch("tokens", f"{len(tokens[1])} in place of {len(tokens[0])} in row {row}")
        return tie

    def _row_step(self, row: int, step: int, expected: int, got: int) -> Difference | None:
        logits = [self._steps("logits", which)[step][row] for which in (0, 1)]
        scores = [self._steps("scores", which)[step][row] for which in (0, 1)]
        where = f"row {row}, step {step}"
        if not self._close(*logits):
            kind = "experts" if self.routed else "logits"
            return self._mismatch(kind, f"logits of {where} differ by {self._worst(*logits):.1e}")
        if expected == got:
            cut = scores[0].isfinite() != scores[1].isfinite()
            if bool(cut.any()):  # at a threshold: what is cut off the distribution is a matter of rounding
                return Difference("near-tie", f"{where}: {int(cut.sum())} candidates at a threshold")
            close = self._close(*scores)
            return None if close else self._mismatch("scores", f"of {where} differ by {self._worst(*scores):.1e}")
        if self.options.get("do_sample"):  # the draw is a function of the scores, which are close, and of the seed
            return Difference("near-tie", f"{where}: drew {got} in place of {expected}")
        gap = abs(float(scores[0][expected] - scores[0][got])) / self._scale(scores[0])
        kind = "near-tie" if gap <= self.bound else "mismatch"
        return Difference(kind, f"tokens: {where}: {got} in place of {expected}, whose scores are {gap:.1e} apart")

    def _others(self) -> Difference | None:
        for name in ("sequences_scores", "beam_indices"):
            expected: Tensor | None = getattr(self.stock, name, None)
            got: Tensor | None = getattr(self.ours, name, None)
            if expected is None and got is None:
                continue
            if expected is None or got is None or not self._close(expected, got):
                return self._mismatch(name, "differ")
        states = [self._steps("hidden_states", which) for which in (0, 1)]
        for step, layers in enumerate(zip(*states, strict=True)):
            if not all(self._close(a, b) for a, b in zip(*layers, strict=True)):
                return self._mismatch("hidden_states", f"of step {step} differ")
        return None

    def _caches(self) -> Difference | None:
        """Keys and values at the prompt's attended columns and after it, layer by layer, as a DynamicCache has them."""
        expected = getattr(self.stock, CACHE, None)
        got = getattr(self.ours, CACHE, None)
        if not isinstance(expected, DynamicCache) or not isinstance(got, relay_hf.RelayCache):
            return None
        if self.beams or self.batch is None or self.ties:
            return None
        length = self.stock.sequences.shape[1] - 1  # the last token has not been through the model
        for index, (theirs, mine) in enumerate(zip(expected.layers, got.to_dynamic().layers, strict=True)):
            for name in ("keys", "values"):
                one, other = getattr(theirs, name, None), getattr(mine, name, None)
                if one is None:  # a recurrent layer, or one that reads another's
                    continue
                if other is None or one.shape != other.shape:
                    return self._mismatch("cache", f"{name} of layer {index}: {getattr(other, 'shape', None)}")
                one, other = one[:, :, -length:], other[:, :, -length:]  # CPM-Ant puts tokens of its own in front
                columns = self._attended(length)[:, -one.shape[2] :]
                if not self._close(one.transpose(1, 2)[columns], other.transpose(1, 2)[columns]):
                    return self._mismatch("cache", f"{name} of layer {index} differ")
        return None

    def _attended(self, length: int) -> Tensor:
        assert self.batch is not None
        rows = len(self.stock.sequences)
        if self.batch.attention_mask is None:
            mask = torch.tensor(self.batch.input_ids) != 0  # generate() takes padding for padding
        else:
            mask = torch.tensor(self.batch.attention_mask).bool()
        mask = mask.repeat_interleave(rows // len(mask), dim=0)
        return torch.cat([mask, mask.new_ones(rows, length - mask.shape[1])], dim=1)
