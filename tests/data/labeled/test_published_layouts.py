from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from slap_fast.data.labeled import LabeledSet, LabelError, open_labeled
from slap_fast.data.prepare import prepare
from tests.data.labeled import builders


def labels(labeled: LabeledSet) -> dict[str, list[str]]:
    return {file.path.name: [labeled.classes[label] for label in file.labels] for file in labeled.files}


def test_esc50_has_its_folds_and_recordings(tmp_path: Path) -> None:
    labeled = open_labeled(builders.esc50(tmp_path))
    assert labeled.name == "esc50"
    assert [(file.fold, file.group) for file in labeled.files] == [(1, "100"), (2, "101"), (5, "102")]


def test_crema_d_and_ravdess_have_the_emotions_and_actors_of_their_file_names(tmp_path: Path) -> None:
    crema_d = open_labeled(builders.crema_d(tmp_path / "crema"))
    assert crema_d.classes == ["angry", "disgust", "fearful", "happy", "neutral", "sad"]
    assert labels(crema_d)["1001_IEO_SAD_HI.wav"] == ["sad"]
    assert [file.group for file in crema_d.files] == ["1001", "1001", "1002"]
    ravdess = open_labeled(builders.ravdess(tmp_path / "ravdess"))
    assert len(ravdess.classes) == 8
    assert labels(ravdess)["03-01-08-01-02-01-02.wav"] == ["surprised"]
    assert [item.reason for item in ravdess.left_out] == ["other_subset"] * 2


def test_gtzan_names_its_damaged_file(tmp_path: Path) -> None:
    labeled = open_labeled(builders.gtzan(tmp_path))
    assert "hip hop" in labeled.classes
    assert {file.path.stem: file.note for file in labeled.files if file.note} == {
        "jazz.00054": "damaged in the published archive"
    }


def test_fsd50k_has_all_classes_and_the_splits_whose_audio_is_there(tmp_path: Path) -> None:
    labeled = open_labeled(builders.fsd50k(tmp_path))
    assert labeled.multi_label
    assert labeled.classes == ["Bark", "Dog", "Gong", "Rain"]
    assert labels(labeled.scored()) == {"37199.wav": ["Bark", "Dog"], "5.wav": ["Rain"]}
    assert [item.origin for item in labeled.left_out] == [str(tmp_path / "FSD50K.dev_audio")]
    with pytest.raises(LabelError, match="no clip is of the split 'train'; its splits: eval"):
        labeled.of_split("train")


def test_audioset_finds_files_by_youtube_id_and_keeps_segments_without_audio(tmp_path: Path) -> None:
    folder = builders.audioset(tmp_path / "audioset")
    labeled = open_labeled(folder)
    assert labels(labeled) == {"Y--4gqARaEJE.wav": ["Speech", "Thunder, storm"], "-0BIyqJj9ZU.wav": ["Vehicle"]}
    assert labeled.splits() == ["eval"]
    assert labeled.left_out[0].detail == f"no audio file of its 1 segments is in {folder}"
    (folder / "eval_segments.csv").write_text('--4gqARaEJE, 0.000, 10.000, "/m/none"\n')
    with pytest.raises(LabelError, match=r"segment 1 \(--4gqARaEJE\): class_labels_indices.csv lacks '/m/none'"):
        open_labeled(folder)


def test_a_table_with_a_column_of_labels_is_multi_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('file,labels,split\na.wav,"dog;Fire, big",test\nb.wav,,test\nc.wav,dog,train\n')
    labeled = open_labeled(tmp_path / "t.csv")
    assert labeled.multi_label
    assert labels(labeled.scored()) == {"a.wav": ["Fire, big", "dog"], "b.wav": []}


def test_parquet_with_audio_inside_has_the_names_of_its_class_numbers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        builders.write_clip(tmp_path / f"{name}.wav")
    audio = [{"bytes": (tmp_path / f"{name}.wav").read_bytes(), "path": f"{name}.wav"} for name in ("a", "b")]
    features = {"label": {"names": ["dog_bark", "siren"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    table = pa.table({"audio": audio, "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set" / "test-00000-of-00001.parquet")
    labeled = open_labeled(tmp_path / "set")
    assert [(labeled.classes[file.labels[0]], file.split) for file in labeled.files] == [
        ("siren", "test"),
        ("dog bark", "test"),
    ]
    assert [file.read() for file in labeled.files if file.read] == [cell["bytes"] for cell in audio]


def test_a_prepared_dataset_keeps_the_classes_folds_and_groups_of_its_source(tmp_path: Path) -> None:
    source = builders.esc50(tmp_path / "esc50")
    prepare(source, tmp_path / "out", vocab_size=300, workers=0, progress=False)
    original, labeled = open_labeled(source), open_labeled(tmp_path / "out")
    assert labeled.name == "esc50"
    for stored, file in zip(labeled.files, original.files, strict=True):
        assert (stored.labels, stored.fold, stored.group) == (file.labels, file.fold, file.group)
        assert stored.read is not None
        assert stored.read().startswith(b"fLaC")


def test_a_prepared_dataset_without_classes_is_an_error(tmp_path: Path) -> None:
    table = builders.clotho(tmp_path / "clotho", ["a.wav"], [["a dog"] * 5])
    prepare(table, tmp_path / "out", vocab_size=300, workers=0, progress=False)
    with pytest.raises(LabelError, match="its clips have no class"):
        open_labeled(tmp_path / "out")
