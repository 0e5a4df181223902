"""`python -m benchmarks.attention_preference RESULT.json ...`: from results of the attention benchmark to the table by
which `varlen_attention` chooses its backend.

Rows of the devices that were measured are written anew, those of others stay. A row's order is that of the geometric
mean, over the cases that fall under it, of a backend's time divided by the fastest backend's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.attention import DIRECTIONS, WINDOWS
from benchmarks.harness.measure import OK
from benchmarks.harness.results import load_result
from benchmarks.our_peers import PREFIX
from slap_fast.ops.attention import BACKENDS
from slap_fast.ops.attention import preference as preference


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's rows that a result fills.

    Raises:
        ValueError: the result is of another benchmark, or of a quick run.
    """
    if result["benchmark"] != "attention" or result["settings"]["quick"]:
        raise ValueError("only full runs of the attention benchmark measure which backend is faster")
    machine = result["machine"]
    device = f"cuda {machine['gpu']['capability']}" if machine["gpu"] else f"cpu {machine['native_isa']}"
    slowdowns: dict[tuple[str, ...], dict[str, list[float]]] = {}
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for case in result["cases"]:
        # Without the variants of kernels: those are for `slap_fast.kernels.variants` to order.
        measured = {peer["name"]: peer["time"]["median"] for peer in case["peers"] if peer["status"] == OK}
        times = {name: measured[PREFIX + name] for name in BACKENDS if PREFIX + name in measured}
        if not times:
            continue
        facts = case["facts"]
        row = {
            "device": device,
            "dtype": facts["dtype"],
            "window": preference.window_kind(*WINDOWS[facts["window"]]),
            "head_dim": preference.head_dim_kind(facts["head_dim"]),
            "lengths": preference.lengths_kind(facts["longest"] > preference.LONGEST_CLIP),
            "pass": preference.pass_kind(DIRECTIONS[facts["pass"]]),
        }
        key = preference.row_key(row)
        rows.setdefault(key, row)
        for name, seconds in times.items():
            slowdowns.setdefault(key, {}).setdefault(name, []).append(seconds / min(times.values()))
    for key, row in rows.items():
        means = {name: geometric_mean(values) for name, values in slowdowns[key].items()}
        row["order"] = sorted(means, key=means.__getitem__)
        row["times the fastest"] = {name: round(means[name], 2) for name in row["order"]}
        row["measured"] = f"{result['date'][:10]}, PyTorch {result['versions']['torch']}"
    return list(rows.values())


def update(table: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    fresh = [row for result in results for row in rows_of(result)]
    devices = {row["device"] for row in fresh}
    kept = [row for row in table["rows"] if row["device"] not in devices]
    return {"format": preference.FORMAT, "rows": sorted([*kept, *fresh], key=preference.row_key)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_preference", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="JSON files that `python -m benchmarks attention` wrote")
    parser.add_argument("--table", type=Path, default=preference.FILE, help="default: the one of the package")
    options = parser.parse_args(argv)
    try:
        table = preference.load(options.table) if options.table.exists() else {"rows": []}
        table = update(table, [load_result(path) for path in options.results])
    except (ValueError, OSError) as error:
        print(f"python -m benchmarks.attention_preference: {error}", file=sys.stderr)
        return 2
    options.table.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{len(table['rows'])} rows -> {options.table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
