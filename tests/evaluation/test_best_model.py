"""The best model of a run survives crashes and is restored by a continued run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slap_fast.evaluation.best_model import BestModel

CHOSEN_BY = {"metric": "r1"}


class _Model:
    """A model whose only weight is a number."""

    def __init__(self, number: int, *, fails: bool = False) -> None:
        self._number = number
        self._fails = fails

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(str(self._number))
        if self._fails:
            raise OSError("no space left")


def offer(best: BestModel, step: int, score: float, **fails: bool) -> bool:
    model: Any = _Model(step, **fails)
    return best.offer(model, step, score, {"t2a_r1": score})


def kept(folder: Path) -> tuple[str, float]:
    return (folder / "weights").read_text(), json.loads((folder / "best.json").read_text())["score"]


def test_a_model_is_saved_if_its_score_is_the_highest_so_far(tmp_path: Path) -> None:
    best = BestModel(tmp_path / "best", CHOSEN_BY)
    assert [offer(best, step, score) for step, score in ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.3))] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.step, best.score) == (2, 0.5)
    assert kept(tmp_path / "best") == ("2", 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_continued_run_keeps_the_earlier_best_model(tmp_path: Path) -> None:
    offer(BestModel(tmp_path / "best", CHOSEN_BY), 2, 0.5)
    best = BestModel(tmp_path / "best", CHOSEN_BY)
    assert best.resume(2) is None
    assert not offer(best, 3, 0.4)
    assert kept(tmp_path / "best") == ("2", 0.5)
    assert offer(best, 4, 0.6)


@pytest.mark.parametrize("crash", ["while saving", "between the renames"])
def test_a_crash_leaves_a_complete_model(tmp_path: Path, crash: str) -> None:
    best = BestModel(tmp_path / "best", CHOSEN_BY)
    offer(best, 1, 0.2)
    if crash == "while saving":
        with pytest.raises(OSError, match="no space"):
            offer(best, 2, 0.9, fails=True)
        assert best.score == 0.2
    else:
        (tmp_path / "best").rename(tmp_path / "best.former")
    best = BestModel(tmp_path / "best", CHOSEN_BY)
    assert best.resume(1) is None
    assert kept(tmp_path / "best") == ("1", 0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("step", "chosen_by", "content", "note"),
    [
        (0, CHOSEN_BY, None, "of another run"),
        (5, {"metric": "r10"}, None, "other evaluation settings"),
        (5, CHOSEN_BY, "{", "cannot be read"),
        (5, CHOSEN_BY, "[]", "cannot be read"),
    ],
)
def test_a_model_without_a_comparable_score_is_replaced_with_a_note(
    tmp_path: Path, step: int, chosen_by: dict[str, str], content: str | None, note: str
) -> None:
    offer(BestModel(tmp_path / "best", CHOSEN_BY), 2, 0.9)
    if content is not None:
        (tmp_path / "best" / "best.json").write_text(content)
    best = BestModel(tmp_path / "best", chosen_by)
    assert note in str(best.resume(step))
    assert offer(best, 6, 0.1)
    assert kept(tmp_path / "best") == ("6", 0.1)
