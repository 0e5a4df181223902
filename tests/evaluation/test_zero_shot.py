from __future__ import annotations

import pytest
import torch

from slap_fast.data.labeled import LabelError
from slap_fast.evaluation.zero_shot import class_embeddings, confusion_matrix, zero_shot_metrics


class TableModel:
    """Embeds texts by a table."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table = table

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([self.table[text] for text in texts])


def test_a_class_is_the_normalized_mean_of_its_normalized_prompts() -> None:
    model = TableModel({"dog": [10.0, 0.0], "a dog!": [0.0, 0.5], "cat": [0.0, 1.0], "a cat!": [0.0, 3.0]})
    embeddings = class_embeddings(model, ["dog", "cat"], ["{}", "a {}!"])
    torch.testing.assert_close(embeddings, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
    torch.testing.assert_close(class_embeddings(model, "cat", "a {}!"), embeddings[1:])


@pytest.mark.parametrize(("templates", "message"), [(["the sound"], r"no \{\}"), ([], "no template")])
def test_a_template_without_a_placeholder_is_an_error(templates: list[str], message: str) -> None:
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
def test_constant_embeddings_score_chance(width: int) -> None:
    constant = torch.nn.functional.normalize(torch.linspace(-1.0, 2.0, width), dim=0)
    metrics = zero_shot_metrics(constant.expand(6, -1), constant.expand(7, -1), torch.arange(6))
    assert metrics["accuracy_at_1"] == metrics["mean_class_accuracy"] == pytest.approx(1 / 7)
    assert metrics["accuracy_at_5"] == pytest.approx(5 / 7)


def test_classes_with_the_same_embedding_share_their_clips() -> None:
    classes = torch.eye(3)[[0, 0, 1, 2]]
    metrics = zero_shot_metrics(torch.eye(3), classes, torch.tensor([0, 2, 3]))
    assert metrics["accuracy_at_1"] == pytest.approx((1 / 2 + 1 + 1) / 3)


def test_confusion_counts_clips_by_class_and_prediction() -> None:
    classes = torch.eye(3)
    confusion = confusion_matrix(classes[[0, 1, 1, 2]], classes, torch.tensor([0, 0, 1, 1]))
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0]])
def test_invalid_labels_are_an_error(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="label"):
        zero_shot_metrics(torch.eye(3)[:2], torch.eye(3), torch.tensor(labels))
