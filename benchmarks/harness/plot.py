"""Plot of a result: one row per case, one marker per peer, time and memory on logarithmic axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import OK
from benchmarks.harness.results import is_ours

# A step may use no memory, and a logarithmic axis has no zero.
MIN_BYTES = 2**10


def plot_result(result: dict[str, Any], path: Path) -> None:
    """Draw `result` to `path`; the suffix chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "slap-fast[bench]"') from error

    cases = [case for case in result["cases"] if any(peer["status"] == OK for peer in case["peers"])]
    names = list(dict.fromkeys(peer["name"] for case in cases for peer in case["peers"] if peer["status"] == OK))
    colors = {name: colormaps["tab20"](number % 20) for number, name in enumerate(names)}
    figure = Figure(figsize=(13, 2.2 + 0.3 * len(cases) + 0.07 * len(names)), layout="constrained")
    has_memory = any("step_bytes" in peer.get("memory", {}) for case in cases for peer in case["peers"])
    axes = figure.subplots(1, 1 + has_memory, sharey=True, squeeze=False, width_ratios=(3, 2)[: 1 + has_memory])[0]
    time_axis, memory_axis = axes[0], axes[-1]
    for position, case in enumerate(cases):
        for peer in case["peers"]:
            if peer["status"] != OK:
                continue
            ours = is_ours(peer["name"])
            style = {
                "color": colors[peer["name"]],
                "marker": "D" if ours else "o",
                "markersize": 7 if ours else 6,
                "markeredgecolor": "black" if ours else "white",
                "markeredgewidth": 0.8,
                "linestyle": "none",
                "zorder": 4 if ours else 3,
            }
            time = peer["time"]
            spread = [[time["median"] - time["q1"]], [time["q3"] - time["median"]]]
            time_axis.errorbar(time["median"], position, xerr=spread, **style)
            if "step_bytes" in peer.get("memory", {}):
                memory_axis.plot(max(MIN_BYTES, peer["memory"]["step_bytes"]) / 2**20, position, **style)
    handles = [
        time_axis.plot([], [], color=colors[name], marker="D" if is_ours(name) else "o", linestyle="none")[0]
        for name in names
    ]
    time_axis.set_yticks(range(len(cases)), [case["name"] for case in cases])
    time_axis.set_ylim(len(cases) - 0.5, -0.5)
    time_axis.set_xlabel("seconds per step (median and quartiles)")
    if has_memory:
        memory_axis.set_xlabel("peak memory of a step (MiB)")
    for axis in axes:
        axis.set_xscale("log")
        # Limits and labels at powers of ten only: labels between them would overlap.
        low, high = (math.log10(limit) for limit in axis.get_xlim())
        axis.set_xlim(10 ** math.floor(low), 10 ** math.ceil(high))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(which="major", linewidth=0.4)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    machine = result["machine"]
    place = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {_threads(result['settings']['threads'])}"
    figure.suptitle(
        f"{result['title']}\n{place}, PyTorch {result['versions']['torch']}, {result['date'][:10]}", fontsize=10
    )
    figure.savefig(path, dpi=130)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
