"""Tables of what was measured on CPUs."""

from __future__ import annotations

import itertools
from typing import Any

from .markdown import BRIEF, NAMES, result, source, table

_OPTIONS = {"num_return_sequences": "samples", "num_beams": "beams"}


def headline() -> str:
    """The sentence that says it all."""
    c1 = _workloads("cpu")["C1"]
    workload, seconds = c1["workload"], _medians(c1)
    report = _contender(c1, "relay-cold")["report"]
    hardware = result("cpu")["hardware"]
    ratio, memory = seconds["stock"] / seconds["relay-cold"], report["kv_bytes_stock"] / report["kv_bytes"]
    return (
        f"**{ratio:.1f}x faster, with {memory:.1f}x less KV memory**: {workload['rows']} prompts that share "
        f"{workload['prefix']:,} tokens, {workload['new']} new tokens each, on a Llama of "
        f"{_parameters(workload['model']) / 1e6:.0f} million parameters in float32 on {hardware['cores']} cores "
        f"({hardware['cpu'].replace('(R)', '')}), take {seconds['relay-cold']:.2f} s where stock `generate()` takes "
        f"{seconds['stock']:.2f} s; {seconds['relay-kept']:.2f} s once the prefix is kept. The tokens are the same. "
        "(Workload C1, [benchmarks](benchmarks.md).)\n"
    )


def brief() -> str:
    """Seconds of the main contenders on C1, and the KV of stock and of the relay."""
    c1 = _workloads("cpu")["C1"]
    seconds, rows = _medians(c1), []
    for contender in BRIEF:
        report = _contender(c1, contender if contender.startswith("relay") else "relay-cold")["report"]
        size = {"stock": report["kv_bytes_stock"], "relay-cold": report["kv_bytes"], "relay-kept": report["kv_bytes"]}
        kv = f"{size[contender] / 2**20:,.0f} MiB" if contender in size else ""
        rows.append([NAMES[contender], f"{seconds[contender]:.2f}", kv])
    return table(["", "seconds", "KV memory"], rows)


def workloads(name: str) -> str:
    """What the workloads of a result are, the seconds of each contender, and KV bytes of the relay and of stock."""
    found = _workloads(name)
    shapes = table(
        ["workload", "prompts", "shared", "own", "new", "model"],
        [[key, *_shape_cells(record["workload"])] for key, record in found.items()],
    )
    medians = [_medians(record) for record in found.values()]
    rows = [
        [label, *(f"{each[contender]:.2f}" if contender in each else "" for each in medians)]
        for contender, label in NAMES.items()
        if any(contender in each for each in medians)
    ]
    reports = [_contender(record, "relay-cold")["report"] for record in found.values()]
    for key, label in (("kv_bytes_stock", "KV of stock, MiB"), ("kv_bytes", "KV of relay_hf, MiB")):
        rows.append([label, *(f"{each[key] / 2**20:.0f}" if each["relayed"] else "" for each in reports)])
    return shapes + "\n" + table(["seconds", *found], rows) + "\n" + source(name)


def grid() -> str:
    """How much faster than stock a patched call is: rows and prefix by own and new tokens."""
    cells = {_shape(record): record["over_stock"] for record in result("grid")["grid"]}
    rows, prefixes, owns, news = (sorted({shape[i] for shape in cells}) for i in range(4))
    columns = list(itertools.product(owns, news))
    lines = [
        [str(count), str(prefix), *(_both(cells[count, prefix, own, new]) for own, new in columns)]
        for count in rows
        for prefix in prefixes
        if prefix
    ]
    head = ["rows", "shared prefix", *(f"{own} own, {new} new" for own, new in columns)]
    return table(head, lines) + "\n" + source("grid")


def nothing_shared() -> str:
    """What a patched call takes of stock's time where there is nothing to share."""
    lines = []
    for record in result("grid_nothing_shared")["grid"]:
        count, _, own, new = _shape(record)
        stock = _contender(record, "stock")["median"]
        ratios = (f"{each['ratio']:.3f} ± {each['noise']:.3f}" for each in record["over_stock"].values())
        lines.append([str(count), str(own), str(new), f"{stock:.3f}", *ratios])
    head = ["rows", "tokens", "new", "stock, s", "patched / stock", "again"]
    return table(head, lines) + "\n" + source("grid_nothing_shared")


def _workloads(name: str) -> dict[str, Any]:
    return {record["name"]: record for record in result(name)["workloads"]}


def _contender(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in record["contenders"] if each["contender"] == name)


def _medians(record: dict[str, Any]) -> dict[str, float]:
    return {each["contender"]: each["median"] for each in record["contenders"]}


def _shape(record: dict[str, Any]) -> tuple[int, int, int, int]:
    workload = record["workload"]
    return workload["rows"], workload["prefix"], workload["own"], workload["new"]


def _both(over_stock: dict[str, dict[str, float]]) -> str:
    """Times as fast as stock, first call and prefix kept."""
    return " / ".join(f"{1 / over_stock[name]['ratio']:.2f}x" for name in ("relay-cold", "relay-kept"))


def _shape_cells(workload: dict[str, Any]) -> list[str]:
    """A workload: prompts and answers, what they share, own tokens, new ones, and the model."""
    rows, model = workload["rows"], workload["model"]
    answers = "".join(f", {count} {_OPTIONS[name]} of each" for name, count in workload["options"].items() if count > 1)
    levels = [[workload["prefix"], 1], *workload.get("later", [])]
    shared = [
        f"{tokens:,} of all" if groups == 1 else f"{tokens:,} of each {rows // groups}"
        for tokens, groups in levels
        if tokens
    ]
    if answers:  # the samples or beams of a prompt share it but for its last token
        shared = [f"{sum(tokens for tokens, _ in levels):,} of the prompt"]
    heads = f"{model['layers']} layers, {model['hidden']} wide, {model['heads']} heads, {model['kv_heads']} of KV"
    return [f"{rows}{answers}", " + ".join(shared) or "nothing", str(workload["own"]), str(workload["new"]), heads]


def _parameters(model: dict[str, int]) -> int:
    """Of a Llama whose head is not tied to its embedding, norms apart."""
    kv = model["hidden"] * model["kv_heads"] // model["heads"]
    layer = model["hidden"] * (2 * model["hidden"] + 2 * kv + 3 * model["intermediate"])
    return 2 * model["vocab"] * model["hidden"] + model["layers"] * layer


TABLES = {
    "headline": headline,
    "brief-cpu": brief,
    "cpu": lambda: workloads("cpu"),
    "trees": lambda: workloads("trees"),
    "grid": grid,
    "nothing-shared": nothing_shared,
}
