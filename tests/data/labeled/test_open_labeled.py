from __future__ import annotations

from pathlib import Path

import pytest

from slap_fast.data.labeled import LabelError, open_labeled


def files_and_classes(source: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    labeled = open_labeled(source)
    assert not labeled.multi_label
    return [(file.path, file.labels[0]) for file in labeled.files], labeled.classes


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog_bark/b.wav", "dog_bark/deep/a.flac", "cat/c.WAV", "cat/notes.txt", "loose.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, names = files_and_classes(tmp_path)
    assert names == ["cat", "dog bark"]
    assert [(path.name, label) for path, label in files] == [("c.WAV", 0), ("b.wav", 1), ("a.flac", 1)]


def test_a_csv_names_files_beside_it_and_their_classes(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text(
        "filename,fold,category\n1.wav,1,sea_waves\n2.wav,2,rain\n", encoding="utf-8-sig"
    )
    files, names = files_and_classes(tmp_path / "meta.csv")
    assert names == ["rain", "sea waves"]
    assert files == [(tmp_path / "1.wav", 1), (tmp_path / "2.wav", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1.wav,dog\n", "columns are a, b"),
        ("file,class\n", "no labeled audio"),
        ("file,class\n1.wav,dog\n2.wav,dog\n", "only the class 'dog'"),
        ("file,class\n1.wav,dog\n,cat\n", "meta.csv:3: no file or no class"),
        ("file,class\n1.wav,dog\n2.wav,nan\n", "meta.csv:3: no file or no class"),
        ("file,class\n1.wav,dog\n2.wav\n", "meta.csv:3: 1 fields, but the header has 2"),
        ('file,class\n1.wav,"dog\n2.wav,cat\n', "meta.csv:2: a cell starts with a quote"),
        ("file,class,class\n1.wav,dog,cat\n", "more than one column is named 'class'"),
        ("file,class\n1.wav,0\n2.wav,14\n", r"the classes are numbers \(0, 14\)"),
        ("file,class\n1.wav,dog\n1.wav,cat\n", "1.wav has the classes 'dog' and 'cat'"),
    ],
)
def test_a_csv_that_cannot_be_used_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "meta.csv").write_text(content)
    with pytest.raises(LabelError, match=message):
        open_labeled(tmp_path / "meta.csv")


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder or CSV"):
        open_labeled(tmp_path / "none")


ESC50 = (
    "filename,fold,target,category,esc10,src_file,take\n"
    "1-1-A-0.wav,1,0,dog,True,1,A\n1-2-A-14.wav,2,14,sea_waves,False,2,A\n"
)
URBANSOUND8K = (
    "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    "1-3-0-0.wav,1,0,4,1,5,3,dog_bark\n2-2-0-0.wav,2,0,4,1,10,2,children_playing\n"
)


@pytest.mark.parametrize(
    ("table", "content", "files", "classes"),
    [
        ("meta/esc50.csv", ESC50, ["audio/1-1-A-0.wav", "audio/1-2-A-14.wav"], ["dog", "sea waves"]),
        ("metadata/UrbanSound8K.csv", URBANSOUND8K, ["audio/fold5/1-3-0-0.wav", "audio/fold10/2-2-0-0.wav"],
         ["dog bark", "children playing"]),
    ],
)  # fmt: skip
def test_published_datasets_have_the_classes_of_their_table_and_not_their_folds(
    tmp_path: Path, table: str, content: str, files: list[str], classes: list[str]
) -> None:
    for name in (table, *files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / table).write_text(content)
    for source in (tmp_path, tmp_path / table, tmp_path / "audio"):
        found, names = files_and_classes(source)
        assert [(path.resolve(), names[label]) for path, label in found] == [
            (tmp_path / file, name) for file, name in zip(files, classes, strict=True)
        ]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["fold1", "fold2", "fold10"], r"folds, not classes \(fold1, fold10, fold2\); give the table"),
        (["train/dog", "train/cat", "test/dog"], r"splits, not classes \(test, train\); give one of"),
        (["0", "1"], "the classes are numbers"),
    ],
)
def test_folders_that_are_not_classes_are_an_error(tmp_path: Path, folders: list[str], message: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.wav").touch()
    with pytest.raises(LabelError, match=message):
        open_labeled(tmp_path)


def test_train_may_be_a_class_name_among_others(tmp_path: Path) -> None:
    for folder in ("train", "bus"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").touch()
    assert open_labeled(tmp_path).classes == ["bus", "train"]
