from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slap_fast.evaluation.zero_shot import (
    LabelError,
    class_embeddings,
    confusion_matrix,
    labelled_files,
    zero_shot_metrics,
)

SUFFIXES = (".wav", ".flac")


class TableModel:
    """Embeds each text as it is told."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table = table

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([self.table[text] for text in texts])


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts() -> None:
    model = TableModel({"dog": [10.0, 0.0], "a dog!": [0.0, 0.5], "cat": [0.0, 1.0], "a cat!": [0.0, 3.0]})
    embeddings = class_embeddings(model, ["dog", "cat"], ["{}", "a {}!"])
    torch.testing.assert_close(embeddings, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


@pytest.mark.parametrize(("templates", "message"), [(["the sound"], r"no \{\}"), ([], "no template")])
def test_a_template_without_a_place_for_the_name_is_an_error(templates: list[str], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        class_embeddings(TableModel({}), ["dog"], templates)


def test_accuracy_counts_the_nearest_class_and_the_five_nearest() -> None:
    classes = torch.eye(8)
    audio = torch.tensor([[0.1, 0.9, 0.5, 0.4, 0.3, 0.2, 0.0, 0.0]]).repeat(4, 1)
    metrics = zero_shot_metrics(audio, classes, torch.tensor([1, 2, 5, 0]))
    assert metrics["accuracy_at_1"] == 0.25
    assert metrics["accuracy_at_5"] == 0.75
    assert metrics["mean_class_accuracy"] == 0.25
    assert metrics["chance"] == 0.125


def test_mean_class_accuracy_weighs_classes_equally() -> None:
    classes = torch.eye(3)
    metrics = zero_shot_metrics(classes[[0, 0, 0, 0]], classes, torch.tensor([0, 0, 0, 1]))
    assert metrics["accuracy_at_1"] == 0.75
    assert metrics["mean_class_accuracy"] == 0.5


@pytest.mark.parametrize("width", [1, 5, 512])
def test_constant_embeddings_are_never_right(width: int) -> None:
    constant = torch.nn.functional.normalize(torch.linspace(-1.0, 2.0, width), dim=0)
    metrics = zero_shot_metrics(constant.expand(6, -1), constant.expand(7, -1), torch.arange(6))
    assert metrics["accuracy_at_1"] == metrics["accuracy_at_5"] == 0


def test_confusion_counts_clips_by_class_and_prediction() -> None:
    classes = torch.eye(3)
    confusion = confusion_matrix(classes[[0, 1, 1, 2]], classes, torch.tensor([0, 0, 1, 1]))
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0]])
def test_labels_that_do_not_fit_are_an_error(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="label"):
        zero_shot_metrics(torch.eye(3)[:2], torch.eye(3), torch.tensor(labels))


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog_bark/b.wav", "dog_bark/deep/a.flac", "cat/c.WAV", "cat/notes.txt", "loose.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, names = labelled_files(tmp_path, extensions=SUFFIXES)
    assert names == ["cat", "dog bark"]
    assert [(path.name, label) for path, label in files] == [("c.WAV", 0), ("b.wav", 1), ("a.flac", 1)]


def test_a_csv_names_files_beside_it_and_their_classes(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text(
        "filename,fold,category\n1.wav,1,sea_waves\n2.wav,2,rain\n", encoding="utf-8-sig"
    )
    files, names = labelled_files(tmp_path / "meta.csv", extensions=SUFFIXES)
    assert names == ["rain", "sea waves"]
    assert files == [(tmp_path / "1.wav", 1), (tmp_path / "2.wav", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1.wav,dog\n", "columns are a, b"),
        ("file,class\n", "no labelled audio"),
        ("file,class\n1.wav,dog\n2.wav,dog\n", "only the class 'dog'"),
        ("file,class\n1.wav,dog\n,cat\n", "row 3 lacks its file or class"),
        ("file,class\n1.wav,dog\n2.wav\n", "row 3 lacks its file or class"),
    ],
)
def test_a_csv_that_cannot_be_used_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "meta.csv").write_text(content)
    with pytest.raises(LabelError, match=message):
        labelled_files(tmp_path / "meta.csv", extensions=SUFFIXES)


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder or CSV"):
        labelled_files(tmp_path / "none", extensions=SUFFIXES)
