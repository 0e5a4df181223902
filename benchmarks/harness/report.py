"""Markdown tables of benchmark results, printed after a run and written between markers of the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.case import AUDIO_SECONDS
from benchmarks.harness.measure import OK
from benchmarks.harness.results import is_ours, load_result
from benchmarks.harness.timing import paired_ratio

MARKED = re.compile(
    r"(?P<open><!-- benchmarks:(?P<name>[\w.-]+)(?P<summary> summary)?"
    r"(?P<rows>(?:\n[^\n]+ = [^\n]+ \| [^\n]+)*)\s-->\n)"
    r".*?(?P<close><!-- /benchmarks:(?P=name) -->)",
    re.DOTALL,
)
SUMMARY = ["case", "slap-fast", "fastest other", "its time", "speedup (quartiles)", "memory", "its memory"]

Record = dict[str, Any]
Column = tuple[str, Callable[[Record, Record], str]]  # header; cell of a case and a peer that was measured


def render(result: Record) -> str:
    """Table, facts, machine and versions of a result. Every peer has a row, also the slower and the failed ones."""
    if "figures" in result:
        return f"{_figures(result['figures'])}\n\n{_conditions(result)}\n"
    if "table" in result:
        return f"{_table(**result['table'])}\n\n{_conditions(result)}\n"
    cases = result["cases"]
    columns = _columns(cases)
    rows = [["case", "peer", *(header for header, _ in columns)]]
    reasons = []
    for case in cases:
        for peer in case["peers"]:
            if peer["status"] == OK:
                cells = [cell(case, peer) for _, cell in columns]
            else:
                cells = [peer["status"], *[""] * (len(columns) - 1)]
                reasons.append(f"- {case['name']}, {peer['name']}: {peer['status']}: {peer['reason']}")
            rows.append([case["name"], peer["name"], *cells])
    reasons += [
        f"- {case['name']}, {peer['name']}: timed as launched from Python, because a CUDA graph cannot capture it: "
        f"{peer['replay']['reason']}"
        for case in cases
        for peer in case["peers"]
        if "reason" in peer.get("replay", {})
    ]
    parts = [markdown_table(rows), "\n".join(reasons), _facts(cases), _conditions(result)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _columns(cases: list[Record]) -> list[Column]:
    """Columns after the names. Optional ones only if a peer has a value: older results lack some."""
    units = dict.fromkeys(unit for case in cases for unit in case["work"])
    peaks = _peak_rates(cases)
    peers = [peer for case in cases for peer in case["peers"]]

    def rate(unit: str) -> Column:
        header = "x real time" if unit == AUDIO_SECONDS else f"{unit}/s"
        return header, lambda case, peer: format_amount(peer["rate"][unit]) if unit in peer["rate"] else ""

    def per_step(unit: str) -> Column:
        return f"{unit} per step", lambda case, peer: _amount(case["work"] | peer.get("work", {}), unit)

    def share(case: Record, peer: Record) -> str:
        peak = peaks.get(case.get("peak", ""))
        return f"{peer['rate'][next(iter(case['work']))] / peak:.0%}" if peak else ""

    def eager(case: Record, peer: Record) -> str:
        return format_seconds(peer["eager"]["median"]) if "eager" in peer else ""

    def peak_memory(case: Record, peer: Record) -> str:
        return _bytes(peer, "step_bytes") or peer.get("memory", {}).get("reason", "")

    columns: list[Column] = [
        ("time per step (quartiles)", lambda case, peer: _time(**peer["time"])),
        ("speedup (quartiles)", lambda case, peer: _ratio(peer.get("ratio"), peer["name"] == case["baseline"])),
        *map(rate, units),
    ]
    if peaks:
        columns.append(("share of measured peak", share))
    columns += [per_step(unit) for unit in units if any(unit in peer.get("work", {}) for peer in peers)]
    columns.append(("peak memory", peak_memory))
    if any("working_bytes" in peer.get("memory", {}) for peer in peers):
        columns.append(("working memory", lambda case, peer: _bytes(peer, "working_bytes")))
    if any(peer.get("replay") for peer in peers):
        columns.append(("launched from Python", eager))
    return columns


def summarize(result: Record) -> str:
    """One row per case: our fastest peer against the fastest other peer; then machine and versions."""
    rows = [row for case in result["cases"] if (row := _summary_row(case)) is not None]
    return f"{markdown_table([SUMMARY, *rows])}\n\n{_conditions(result)}\n"


def _summary_row(case: Record) -> list[str] | None:
    ran = sorted((peer for peer in case["peers"] if peer["status"] == OK), key=lambda peer: peer["time"]["median"])
    ours = next((peer for peer in ran if is_ours(peer["name"])), None)
    other = next((peer for peer in ran if not is_ours(peer["name"])), None)
    if ours is None:
        return None
    row = [case["name"], format_seconds(ours["time"]["median"])]
    if other is None:
        return [*row, "none", "", "", _memory(ours), ""]
    ratio = _ratio(paired_ratio(other["seconds"], ours["seconds"]), False)
    return [*row, other["name"], format_seconds(other["time"]["median"]), ratio, _memory(ours), _memory(other)]


def _selected_rows(lines: str, results: Path) -> str:
    """A table of cases from several results.

    Args:
        lines: one per row, `label = result name | case name`.
        results: folder of the results.

    Raises:
        ValueError: a result or case does not exist, or slap-fast was not measured in the case.
    """
    rows = []
    conditions: dict[str, None] = {}  # a dict, because a result with several rows is described once
    for line in lines.strip().splitlines():
        label, _, source = line.partition(" = ")
        name, _, wanted = source.partition(" | ")
        result = _load(results, name)
        row = next((_summary_row(case) for case in result["cases"] if case["name"] == wanted), None)
        if row is None:
            raise ValueError(f"{results / name}.json has no row for the case {wanted!r}, which the documentation shows")
        rows.append([label, *row[1:]])
        conditions[f"- `{name}`: {_conditions(result)}"] = None
    return "\n\n".join([markdown_table([SUMMARY, *rows]), "\n".join(conditions)]) + "\n"


def _load(results: Path, name: str) -> Record:
    path = results / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"the marker benchmarks:{name} has no result {path}; run the benchmark first")
    return load_result(path)


def _memory(peer: Record) -> str:
    """Working memory, or peak memory in older results."""
    return _bytes(peer, "working_bytes") or _bytes(peer, "step_bytes")


def render_document(text: str, results: Path) -> str:
    """`text` with a new table between each `<!-- benchmarks:NAME -->` and its `<!-- /benchmarks:NAME -->`.

    The table is that of `results/NAME.json`: one row per peer, or one row per case after `NAME summary`. If a marker
    has lines `label = RESULT | CASE` between NAME and `-->`, the table has one row per line, from any result.

    Raises:
        ValueError: a marker has no closing or opening marker, or its result or case does not exist.
    """

    def fill(match: re.Match[str]) -> str:
        if match["rows"]:
            table = _selected_rows(match["rows"], results)
        else:
            table = (summarize if match["summary"] else render)(_load(results, match["name"]))
        return f"{match['open']}{table}{match['close']}"

    unmatched = re.search(r"<!-- /?benchmarks:[^>]*-->", MARKED.sub("", text))
    if unmatched:
        raise ValueError(f"the marker {unmatched[0]} has no opening or closing marker")
    return MARKED.sub(fill, text)


def _figures(figures: list[Record]) -> str:
    rows = [
        [figure["name"], format_amount(figure["value"]), "" if figure["bound"] is None else f"{figure['bound']:g}"]
        for figure in figures
    ]
    return markdown_table([["figure", "measured", "must be below"], *rows])


def _table(columns: list[str], rows: list[list[str | float | None]]) -> str:
    cells = [["" if cell is None else _fact(cell) for cell in row] for row in rows]
    return markdown_table([columns, *cells])


def _peak_rates(cases: list[Record]) -> dict[str, float]:
    """For each case that is the `peak` of others: its highest rate of the first unit of work."""
    wanted = {case["peak"] for case in cases if case.get("peak")}  # older results have none
    return {
        case["name"]: max(peer["rate"][next(iter(case["work"]))] for peer in case["peers"] if peer["status"] == OK)
        for case in cases
        if case["name"] in wanted and any(peer["status"] == OK for peer in case["peers"])
    }


def _time(q1: float, median: float, q3: float) -> str:
    return f"{format_seconds(median)} ({format_seconds(q1)} to {format_seconds(q3)})"


def _bytes(peer: Record, key: str) -> str:
    memory = peer.get("memory", {})
    return format_bytes(memory[key]) if key in memory else ""


def _amount(work: Record, unit: str) -> str:
    return format_amount(work[unit]) if unit in work else ""


def _facts(cases: list[Record]) -> str:
    """One line for all cases with the same facts."""
    described: dict[str, list[str]] = {}
    for case in cases:
        if case["facts"]:
            line = ", ".join(f"{name} {_fact(value)}" for name, value in case["facts"].items())
            described.setdefault(line, []).append(case["name"])
    return "\n".join(f"- {'; '.join(names)}: {line}" for line, names in described.items())


def _ratio(ratio: dict[str, float] | None, is_baseline: bool) -> str:
    if ratio is None:
        return "no baseline"
    if is_baseline:
        return "1 (baseline)"
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def _conditions(result: Record) -> str:
    machine, versions, settings = result["machine"], result["versions"], result["settings"]
    rounds = {len(peer["seconds"]) for case in result["cases"] for peer in case["peers"] if peer["status"] == OK}
    parts = [
        machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']} ({', '.join(machine['isa'])})",
        f"{settings['threads']} of {machine['cores']} cores",
        f"PyTorch {versions['torch']}",
        f"{' to '.join(map(str, sorted({min(rounds), max(rounds)})))} interleaved rounds" if rounds else "",
        "cold cache" if settings["cold_cache"] else "",
        "quick run: sizes too small to compare speeds" if settings["quick"] else "",
        result["date"][:10],
        f"commit {versions['commit'][:12]}{'+changes' * versions['commit'].endswith('+changes')}"
        if versions["commit"]
        else "",
    ]
    return "; ".join(filter(None, parts)) + "."


def markdown_table(rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _fact(value: float | str) -> str:
    return value if isinstance(value, str) else format_amount(value)


def format_seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def format_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{_three_digits(count)} {unit}"
        count /= 1024
    return f"{_three_digits(count)} GiB"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.3g}"


def format_amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
