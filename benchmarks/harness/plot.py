"""One figure a result: time and memory of each peer, side by side by case. Drawn from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness.measure import OK
from benchmarks.harness.report import format_bytes, format_seconds


def plot_result(result: dict[str, Any], path: Path) -> None:
    """Draw `result` to `path`; the suffix chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "slap-fast[bench]"') from error

    rows = [(case, peer) for case in result["cases"] for peer in case["peers"]]
    names = list(dict.fromkeys(peer["name"] for _, peer in rows))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    figure = Figure(figsize=(11, 1.2 + 0.45 * len(rows)), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2, sharey=True)
    for position, (_, peer) in enumerate(rows):
        colour = colours[peer["name"]]
        if peer["status"] != OK:
            time_axis.text(0, position, f" {peer['status']}", va="center", fontsize=8, color=colour)
            continue
        time = peer["time"]
        spread = [[time["median"] - time["q1"]], [time["q3"] - time["median"]]]
        time_axis.barh(position, time["median"], xerr=spread, color=colour, capsize=3)
        ratio = f"  {peer['ratio']['median']:.2f}x" if "ratio" in peer else ""
        time_axis.text(time["q3"], position, f"  {format_seconds(time['median'])}{ratio}", va="center", fontsize=8)
        if "step_bytes" in peer.get("memory", {}):
            step_bytes = peer["memory"]["step_bytes"]
            memory_axis.barh(position, step_bytes / 2**20, color=colour)
            memory_axis.text(step_bytes / 2**20, position, f"  {format_bytes(step_bytes)}", va="center", fontsize=8)
    time_axis.set_yticks(range(len(rows)), [f"{case['name']}: {peer['name']}" for case, peer in rows])
    time_axis.set_ylim(len(rows) - 0.5, -0.5)
    time_axis.set_xlabel("seconds a step (median, quartiles; shorter is better)")
    memory_axis.set_xlabel("peak memory of a step, MiB")
    for axis in (time_axis, memory_axis):
        axis.margins(x=0.25)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    machine = result["machine"]
    place = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {result['settings']['threads']} threads"
    figure.suptitle(
        f"{result['title']}\n{place}, PyTorch {result['versions']['torch']}, {result['date'][:10]}", fontsize=10
    )
    figure.savefig(path, dpi=150)
