"""Tables of what a real chat model answers in three dtypes, stock and relayed."""

from __future__ import annotations

import statistics
from typing import Any

from .markdown import result, source, table

_DTYPES = ("float32", "bfloat16", "float16")
_WHO = {"stock": "stock", "relay_hf": "relay_hf"}


def summary() -> str:
    """How many answers differ, where, and how near the choice was there."""
    found, rows = result("quality"), []
    count = len(found["questions"])
    for dtype in _DTYPES:
        differ = found[dtype]["differ"]
        steps, gaps = [each["step"] + 1 for each in differ], [each["gap"] for each in differ]
        as_exact = found[dtype].get("as_in_float32", {"stock": count, "relay_hf": count - len(differ)})
        rows.append(
            [
                dtype,
                f"{len(differ)} of {count}",
                f"{statistics.median(steps):.0f}" if steps else "",
                f"{statistics.median(gaps):.3f}; {max(gaps):.3f}" if gaps else "",
                *(f"{as_exact[name]} of {count}" for name in _WHO),
            ]
        )
    head = [
        "dtype",
        "differ from stock",
        "from token",
        "best two apart",
        "stock as in float32",
        "relay_hf as in float32",
    ]
    return table(head, rows) + "\n" + source("quality")


def differences() -> str:
    """Each answer that differs: the question, where, and what each took for the next word."""
    found, rows = result("quality"), []
    for dtype in _DTYPES:
        for each in found[dtype]["differ"]:
            question = found["questions"][each["row"]]
            words = (f"`{each[name]!r}`" for name in _WHO)
            rows.append([dtype, _cell(question, 60), str(each["step"] + 1), *words, f"{each['gap']:.3f}"])
    return table(["dtype", "question", "token", "stock", "relay_hf", "best two apart"], rows)


def answers() -> str:
    """All answers: one line for each text, with those that gave it."""
    found, parts = result("quality"), []
    for row, question in enumerate(found["questions"]):
        said: dict[str, list[str]] = {}
        for dtype in _DTYPES:
            for name in _WHO:
                said.setdefault(found[dtype]["answers"][name][row], []).append(f"{name} {dtype}")
        lines = "".join(f"- {_names(who)}: {_cell(text)}\n" for text, who in said.items())
        parts.append(f"**{_cell(question)}**\n\n{lines}")
    return "\n".join(parts)


def divergence() -> str:
    """How far half precision is from float32 on given tokens, for stock and relayed."""
    found, rows = result("quality"), []
    for dtype in _DTYPES[1:]:
        distance = found[dtype]["distance"]
        ratio = distance["over_stock"]
        rows.append(
            [
                dtype,
                *(_with_error(distance[name]) for name in _WHO),
                f"{ratio['ratio']:.3f} ± {ratio['standard_error']:.3f}",
                *(f"{distance[name]['agreement']:.2%}" for name in _WHO),
            ]
        )
    head = ["dtype", "divergence of stock", "of relay_hf", "ratio", "same token as float32, stock", "relay_hf"]
    return table(head, rows) + "\n" + source("quality")


def _with_error(distance: dict[str, Any]) -> str:
    return f"{distance['divergence']:.2e} ± {distance['standard_error']:.1e}"


def _names(who: list[str]) -> str:
    """Who gave an answer, in few words."""
    if len(who) == 2 * len(_DTYPES):
        return "all"
    both = [dtype for dtype in _DTYPES if {f"{name} {dtype}" for name in _WHO} <= set(who)]
    alone = [each for each in who if each.split()[1] not in both]
    return ", ".join([*(f"both in {dtype}" for dtype in both), *(each.replace(" ", " in ") for each in alone)])


def _cell(text: str, most: int = 400) -> str:
    """Text for a line of Markdown, cut where it is long, without the model's own marks of bold type."""
    line = " ".join(text.replace("**", "").split())
    line = line if len(line) <= most else f"{line[:most].rstrip()} ..."
    for mark in "\\`*_|<>[]#":
        line = line.replace(mark, f"\\{mark}")
    return line


TABLES = {
    "quality": summary,
    "quality-differences": differences,
    "quality-answers": answers,
    "divergence": divergence,
}
