"""Command line of the benchmarks: exit status, JSON results, tables and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.cli import main
from benchmarks.harness.report import format_bytes, format_seconds, render, render_document, summarize
from benchmarks.harness.results import load_result, merge_earlier, result_name


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert main(["tests.benchmarks.toy", "--quick", "--threads", "1", "--no-memory", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def result(results: Path) -> dict[str, Any]:
    return load_result(results / "toy-cpu-quick.json")


def test_the_result_has_machine_versions_settings_and_date(result: dict[str, Any]) -> None:
    assert {"cpu", "cores", "isa", "memory_bytes", "gpu"} <= set(result["machine"])
    assert {"python", "torch", "slap-fast", "commit"} <= set(result["versions"])
    assert result["settings"]["quick"] is True
    assert result["settings"]["threads"] == 1
    assert result["date"].endswith("+00:00")


def test_the_result_keeps_every_sample(result: dict[str, Any]) -> None:
    (case,) = result["cases"]
    assert [peer["name"] for peer in case["peers"]] == ["small", "large", "absent"]
    assert [len(peer.get("seconds", [])) for peer in case["peers"]] == [3, 3, 0]
    assert case["peers"][1]["ratio"]["median"] == 1.0


def test_a_failed_check_exits_with_1_and_is_printed_without_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tests.benchmarks.broken_toy", "--quick", "--no-memory", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if "| wrong " in line]
    assert row.split("|")[3].strip() == "failed check"
    assert "- broken, wrong: failed check: sum is off by 1.00e-03" in printed
    assert (tmp_path / "broken_toy-cpu-quick.json").is_file()


def test_all_peers_are_printed_even_slower_and_unavailable_ones(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["tests.benchmarks.toy", "--quick", "--no-memory", "--out", str(results)])
    printed = capsys.readouterr().out
    assert all(f"| right | {name} " in printed for name in ("small", "large", "absent"))
    assert "not available: libsum is not installed" in printed


def test_the_table_has_columns_for_real_time_factor_and_working_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = "tests.benchmarks.returning_toy"
    assert main([benchmark, "--quick", "--no-memory", "--out", str(tmp_path)]) == 0
    without_memory = capsys.readouterr().out
    assert "| x real time |" in without_memory
    assert "working memory" not in without_memory
    result = load_result(tmp_path / "returning_toy-cpu-quick.json")
    lean, _ = result["cases"][0]["peers"]
    lean["memory"] = {"step_bytes": 2**25, "working_bytes": 2**19}
    table = render(result).splitlines()
    assert table[0].endswith("| peak memory | working memory |")
    assert table[2].endswith("| 32 MiB      | 512 KiB        |")
    assert table[3].split("|")[-3:-1] == [" " * 13, " " * 16]
    assert lean["rate"]["audio seconds"] == pytest.approx(60.0 / lean["time"]["median"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no benchmark 'nothing'"),
        (["--threads", "0"], "--threads is 0"),
        (["tests.benchmarks.toy", "--cases", "left"], "no case matches; there are right"),
        (["plot", "--out", "nowhere"], "no results to plot"),
        (["readme", "--readme", "nowhere.md"], "nowhere.md"),
    ],
)
def test_invalid_arguments_exit_with_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


README = """# Title
<!-- benchmarks:toy-cpu-quick -->
<!-- /benchmarks:toy-cpu-quick -->
between
<!-- benchmarks:toy-cpu-quick -->
stale
<!-- /benchmarks:toy-cpu-quick -->
end
"""


def test_readme_fills_the_tables_and_a_second_run_changes_nothing(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    command = ["readme", "--readme", str(readme), "--out", str(results)]
    assert main([*command, "--check"]) == 1
    assert readme.read_text() == README
    assert main(command) == 0
    filled = readme.read_text()
    assert filled.count("| right | small ") == 2
    assert "stale" not in filled
    assert filled.startswith("# Title\n<!-- benchmarks")
    assert filled.endswith("-->\nend\n")
    assert main([*command, "--check"]) == 0
    assert main(command) == 0
    assert readme.read_text() == filled


def test_a_cpu_without_avx_512_has_results_of_its_own(result: dict[str, Any]) -> None:
    recorded = result | {"settings": result["settings"] | {"quick": False}}
    names = [result_name(recorded | {"machine": {"isa": isa}}) for isa in (["avx2", "fma"], ["avx2", "avx512f"])]
    assert names == ["toy-cpu-avx2", "toy-cpu"]


def test_a_marker_with_lines_draws_the_named_cases(result: dict[str, Any], tmp_path: Path) -> None:
    seconds = {"slap-fast": [2.0, 2.0, 2.0], "libsum": [4.0, 4.0, 4.0]}
    peers = [
        result["cases"][0]["peers"][0] | {"name": name, "seconds": samples, "time": {"median": samples[0]}}
        for name, samples in seconds.items()
    ]
    cases = [result["cases"][0] | {"name": name, "peers": peers} for name in ("sum, large", "sum, small")]
    for name in ("a-cpu", "b-cpu"):
        (tmp_path / f"{name}.json").write_text(json.dumps(result | {"cases": cases}))
    lines = "the first = b-cpu | sum, small\nthe second = a-cpu | sum, large\nthe third = a-cpu | sum, small\n"
    text = f"before\n<!-- benchmarks:chosen\n{lines}-->\nstale\n<!-- /benchmarks:chosen -->\nafter\n"
    drawn = render_document(text, tmp_path)
    assert "stale" not in drawn
    assert drawn.startswith(f"before\n<!-- benchmarks:chosen\n{lines}-->\n| case ")
    table = [_cells(line) for line in drawn.splitlines() if line.startswith("| the ")]
    assert [row[0] for row in table] == ["the first", "the second", "the third"]
    assert all(row[1:5] == ["2 s", "libsum", "4 s", "2.00 (2.00 to 2.00)"] for row in table)
    assert drawn.count("- `a-cpu`: ") == drawn.count("- `b-cpu`: ") == 1
    assert render_document(drawn, tmp_path) == drawn


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- benchmarks:toy-cpu-quick -->\n", "has no opening or closing marker"),
        ("<!-- benchmarks:other-cpu -->\n<!-- /benchmarks:other-cpu -->\n", "has no result"),
        ("<!-- benchmarks:rows\na = other-cpu | sum\n-->\n<!-- /benchmarks:rows -->\n", "has no result"),
        ("<!-- benchmarks:rows\na = toy-cpu-quick | x\n-->\n<!-- /benchmarks:rows -->\n", "no row for the case 'x'"),
    ],
)
def test_an_invalid_marker_is_an_error_with_its_name(results: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_document(text, results)


def test_a_result_with_a_table_shows_that_table(result: dict[str, Any]) -> None:
    table = {"columns": ["fault", "times", "after (s)"], "rows": [["kill", 1200, 3.456], ["freeze", 2, None]]}
    lines = render(result | {"cases": [], "table": table}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:4])]
    assert cells == [["fault", "times", "after (s)"], ["kill", "1,200", "3.46"], ["freeze", "2", ""]]


def test_plots_are_drawn_from_the_json_file_alone(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "copy.json").write_text((results / "toy-cpu-quick.json").read_text())
    assert main(["plot", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "copy.png").stat().st_size > 5_000


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 0})])
def test_a_file_that_is_not_a_result_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        load_result(path)


def test_times_and_bytes_have_three_digits_and_a_suitable_unit() -> None:
    assert [format_seconds(value) for value in (61.23, 0.9999, 1.234e-3, 5.678e-5, 2e-9)] == [
        "61.2 s",
        "1000 ms",
        "1.23 ms",
        "56.8 µs",
        "2 ns",
    ]
    assert [format_bytes(value) for value in (512, 1_536, 3 * 2**20, 5 * 2**30)] == [
        "512 B",
        "1.5 KiB",
        "3 MiB",
        "5 GiB",
    ]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_unselected_peers_are_listed_as_left_out(tmp_path: Path) -> None:
    command = ["tests.benchmarks.toy", "--quick", "--no-memory", "--peers", "mall", "--out", str(tmp_path)]
    assert main(command) == 0
    (case,) = load_result(tmp_path / "toy-cpu-quick.json")["cases"]
    assert case["baseline"] == "large"
    assert [peer["status"] for peer in case["peers"]] == ["ok", "ok", "not available"]
    assert main([*command[:-4], "--peers", "absent", *command[-2:]]) == 0
    (case,) = load_result(tmp_path / "toy-cpu-quick.json")["cases"]
    assert "left out" in case["peers"][0]["reason"]


def test_the_summary_compares_our_fastest_peer_with_the_fastest_other_even_if_the_other_is_faster(
    result: dict[str, Any],
) -> None:
    case = result["cases"][0] | {"name": "sum"}
    seconds = {"slap-fast, slow": [9.0, 9.0, 9.0], "slap-fast, quick": [2.0, 4.0, 2.0], "libsum": [1.0, 1.0, 1.0]}
    measured = [
        case["peers"][0] | {"name": name, "seconds": samples, "time": {"median": sorted(samples)[1]}, "memory": {}}
        for name, samples in seconds.items()
    ]
    measured[1]["memory"] = {"step_bytes": 2**20, "working_bytes": 2**10}
    alone, without_us = case | {"name": "alone"}, case | {"name": "without us"}
    cases = [case | {"peers": measured}, alone | {"peers": measured[:2]}, without_us | {"peers": measured[2:]}]
    rows = summarize(result | {"cases": cases}).splitlines()[2:4]
    assert _cells(rows[0]) == ["sum", "2 s", "libsum", "1 s", "0.50 (0.38 to 0.50)", "1 KiB", ""]
    assert _cells(rows[1]) == ["alone", "2 s", "none", "", "", "1 KiB", ""]


def test_cases_are_merged_into_the_earlier_result_in_the_order_of_the_benchmark(result: dict[str, Any]) -> None:
    def case(name: str, tolerance: float) -> dict[str, Any]:
        return result["cases"][0] | {"name": name, "tolerance": tolerance}

    earlier = result | {"cases": [case("first", 1.0), case("second", 1.0), case("no longer there", 1.0)]}
    later = result | {"cases": [case("third", 2.0), case("second", 2.0)]}
    joined = merge_earlier(later, earlier, ["first", "second", "third", "never measured"])
    assert [(part["name"], part["tolerance"]) for part in joined["cases"]] == [
        ("first", 1),
        ("second", 2),
        ("third", 2),
    ]


def test_cases_of_another_machine_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tests.benchmarks.toy", "--quick", "--threads", "1", "--no-memory", "--add", "--out", str(tmp_path)]
    assert main(command) == 0
    path = tmp_path / "toy-cpu-quick.json"
    other = load_result(path)
    other["machine"]["cpu"] = "another"
    path.write_text(json.dumps(other))
    assert main(command) == 2
    assert "differs in machine: cpu" in capsys.readouterr().err
    assert load_result(path) == other


SERIES = ["tests.benchmarks.series_toy", "--quick", "--no-memory"]


def _statuses(folder: Path) -> dict[str, str]:
    cases = load_result(folder / "series_toy-cpu-quick.json")["cases"]
    return {case["name"]: case["peers"][0]["status"] for case in cases}


def test_a_failing_reference_affects_only_its_case(tmp_path: Path) -> None:
    assert main([*SERIES, "--out", str(tmp_path)]) == 1
    assert _statuses(tmp_path) == {"first": "ok", "without reference": "error", "last": "ok"}


def test_cases_beyond_the_budget_are_listed_as_left_out_and_each_case_is_appended_to_the_lines_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.jsonl"
    assert main([*SERIES, "--budget", "0", "--lines", str(lines), "--out", str(tmp_path)]) == 0
    assert set(_statuses(tmp_path).values()) == {"left out"}
    assert "left out: the budget of 0 s was used up" in capsys.readouterr().out
    names = [json.loads(line)["result"]["cases"][0]["name"] for line in lines.read_text().splitlines()]
    assert names == ["first", "without reference", "last"]


def test_resume_continues_after_the_case_in_which_the_process_died(tmp_path: Path) -> None:
    main([*SERIES, "--cases", "first", "--out", str(tmp_path)])
    path = tmp_path / "series_toy-cpu-quick.json"
    path.write_text(json.dumps(load_result(path) | {"in_progress": "without reference"}))
    seconds = load_result(path)["cases"][0]["peers"][0]["seconds"]
    assert main([*SERIES, "--resume", "--out", str(tmp_path)]) == 1
    assert _statuses(tmp_path) == {"first": "ok", "without reference": "error", "last": "ok"}
    first, died, _ = load_result(path)["cases"]
    assert first["peers"][0]["seconds"] == seconds
    assert died["peers"][0]["reason"] == "the process died while it ran this case"
    assert "in_progress" not in load_result(path)
