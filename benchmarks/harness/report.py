"""Benchmark results as Markdown tables: printed after a run, and written between markers of the documentation."""

from __future__ import annotations

import re
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
SUMMARY = ["case", "slap-fast", "fastest other", "its time", "times as fast (quartiles)", "memory", "of the other"]


def render(result: dict[str, Any]) -> str:
    """Table, facts and circumstances of a result; every peer has a row, the slower and the failed ones too."""
    cases = result["cases"]
    if "figures" in result:
        return f"{_figures(result['figures'])}\n\n{_circumstances(result)}\n"
    if "table" in result:
        return f"{_table(**result['table'])}\n\n{_circumstances(result)}\n"
    units = list(dict.fromkeys(unit for case in cases for unit in case["work"]))
    rates = ["x real time" if unit == AUDIO_SECONDS else f"{unit}/s" for unit in units]
    peers = [peer for case in cases for peer in case["peers"]]
    working = any("working_bytes" in peer.get("memory", {}) for peer in peers)  # older results have none
    header = ["case", "peer", "time a step (quartiles)", "times as fast (quartiles)", *rates, "peak memory of a step"]
    header += ["of it beyond its result"] * working
    replayed = any(peer.get("replay") for peer in peers)
    header += ["launched from Python"] * replayed
    peaks = _peak_rates(cases)
    if peaks:
        header.insert(4 + len(units), "share of measured peak")
    rows = [
        [case["name"], *_cells(peer, case, units, working, peaks, replayed)] for case in cases for peer in case["peers"]
    ]
    reasons = [
        f"- {case['name']}, {peer['name']}: {peer['status']}: {peer['reason']}"
        for case in cases
        for peer in case["peers"]
        if peer["status"] != OK
    ]
    reasons += [
        f"- {case['name']}, {peer['name']}: timed as Python launches it, since no CUDA graph holds it: "
        f"{peer['replay']['reason']}"
        for case in cases
        for peer in case["peers"]
        if "reason" in peer.get("replay", {})
    ]
    parts = [markdown_table([header, *rows]), "\n".join(reasons), _facts(cases), _circumstances(result)]
    return "\n\n".join(filter(None, parts)) + "\n"


def summarize(result: dict[str, Any]) -> str:
    """One row per case: our fastest peer against the fastest other one; then the circumstances."""
    rows = [row for case in result["cases"] if (row := _summary_row(case)) is not None]
    return f"{markdown_table([SUMMARY, *rows])}\n\n{_circumstances(result)}\n"


def _summary_row(case: dict[str, Any]) -> list[str] | None:
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
    """A table of cases of several results.

    Args:
        lines: one per row, `label = result name | case name`.
        results: the folder of the results.

    Raises:
        ValueError: a result or a case does not exist, or the case has no row.
    """
    rows = []
    circumstances: dict[str, None] = {}  # a result that has several rows is described once
    for line in lines.strip().splitlines():
        label, _, source = line.partition(" = ")
        name, _, wanted = source.partition(" | ")
        result = _load(results, name)
        row = next((_summary_row(case) for case in result["cases"] if case["name"] == wanted), None)
        if row is None:
            raise ValueError(f"{results / name}.json has no row for the case {wanted!r}, which the documentation shows")
        rows.append([label, *row[1:]])
        circumstances[f"- `{name}`: {_circumstances(result)}"] = None
    return "\n\n".join([markdown_table([SUMMARY, *rows]), "\n".join(circumstances)]) + "\n"


def _load(results: Path, name: str) -> dict[str, Any]:
    path = results / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"the marker benchmarks:{name} has no result {path}; run the benchmark first")
    return load_result(path)


def _memory(peer: dict[str, Any]) -> str:
    """Beyond the step's result where that was measured, else of the step."""
    memory = peer.get("memory", {})
    return next((format_bytes(memory[name]) for name in ("working_bytes", "step_bytes") if name in memory), "")


def render_document(text: str, results: Path) -> str:
    """`text` with a fresh table between each `<!-- benchmarks:NAME -->` and its `<!-- /benchmarks:NAME -->`.

    The table is drawn from `results/NAME.json`: one row per peer, or after `NAME summary` one row per case. A marker
    with lines `label = RESULT | CASE` between its NAME and `-->` draws one row for each, of any result.

    Raises:
        ValueError: a marker has no partner, or its result or case does not exist.
    """

    def fill(match: re.Match[str]) -> str:
        if match["rows"]:
            table = _selected_rows(match["rows"], results)
        else:
            table = (summarize if match["summary"] else render)(_load(results, match["name"]))
        return f"{match['open']}{table}{match['close']}"

    unmatched = re.search(r"<!-- /?benchmarks:[^>]*-->", MARKED.sub("", text))
    if unmatched:
        raise ValueError(f"the marker {unmatched[0]} has no partner")
    return MARKED.sub(fill, text)


def _figures(figures: list[dict[str, Any]]) -> str:
    rows = [
        [figure["name"], format_amount(figure["value"]), "" if figure["bound"] is None else f"{figure['bound']:g}"]
        for figure in figures
    ]
    return markdown_table([["figure", "measured", "must be below"], *rows])


def _table(columns: list[str], rows: list[list[str | float | None]]) -> str:
    cells = [["" if cell is None else _fact(cell) for cell in row] for row in rows]
    return markdown_table([columns, *cells])


def _peak_rates(cases: list[dict[str, Any]]) -> dict[str, float]:
    """By the name of each case that others take for a peak: its highest rate of the first unit of work."""
    wanted = {case["peak"] for case in cases if case.get("peak")}  # older results have none
    return {
        case["name"]: max(peer["rate"][next(iter(case["work"]))] for peer in case["peers"] if peer["status"] == OK)
        for case in cases
        if case["name"] in wanted and any(peer["status"] == OK for peer in case["peers"])
    }


def _cells(
    peer: dict[str, Any], case: dict[str, Any], units: list[str], working: bool, peaks: dict[str, float], replayed: bool
) -> list[str]:
    if peer["status"] != OK:
        return [peer["name"], peer["status"], *[""] * (len(units) + 2 + working + bool(peaks) + replayed)]
    peak = peaks.get(case.get("peak", ""))
    share = f"{peer['rate'][next(iter(case['work']))] / peak:.0%}" if peak else ""
    time, memory = peer["time"], peer.get("memory", {})
    ratio = peer.get("ratio")
    return [
        peer["name"],
        f"{format_seconds(time['median'])} ({format_seconds(time['q1'])} to {format_seconds(time['q3'])})",
        _ratio(ratio, peer["name"] == case["baseline"]),
        *[format_amount(peer["rate"][unit]) if unit in peer["rate"] else "" for unit in units],
        *([share] * bool(peaks)),
        format_bytes(memory["step_bytes"]) if "step_bytes" in memory else memory.get("reason", ""),
        *([format_bytes(memory["working_bytes"]) if "working_bytes" in memory else ""] * working),
        *([format_seconds(peer["eager"]["median"]) if "eager" in peer else ""] * replayed),
    ]


def _facts(cases: list[dict[str, Any]]) -> str:
    """One line for all the cases that share their facts."""
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


def _circumstances(result: dict[str, Any]) -> str:
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
