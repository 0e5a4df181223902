"""Stand-ins of published labeled datasets: the real names and columns, and short clips of noise."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")


def write_clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(str(path.name).encode()))
    soundfile.write(path, generator.uniform(-0.3, 0.3, 4000), 16_000)


def write_table(path: Path, *rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def esc50(root: Path) -> Path:
    names = ["1-100-A-0.wav", "2-101-A-11.wav", "5-102-B-0.wav"]
    for name in names:
        write_clip(root / "audio" / name)
    write_table(
        root / "meta" / "esc50.csv",
        ("filename", "fold", "target", "category", "esc10", "src_file", "take"),
        (names[0], 1, 0, "dog", True, 100, "A"),
        (names[1], 2, 11, "sea_waves", True, 101, "A"),
        (names[2], 5, 0, "dog", True, 102, "B"),
    )
    return root


def crema_d(root: Path) -> Path:
    for actor, emotion, level in ((1001, "ANG", "XX"), (1001, "SAD", "HI"), (1002, "NEU", "X")):
        write_clip(root / "AudioWAV" / f"{actor}_IEO_{emotion}_{level}.wav")
    return root


def ravdess(root: Path) -> Path:
    for actor in (1, 2):
        for emotion in (1, 8):
            write_clip(root / f"Actor_{actor:02d}" / f"03-01-{emotion:02d}-01-02-01-{actor:02d}.wav")
        write_clip(root / f"Actor_{actor:02d}" / f"03-02-03-01-02-01-{actor:02d}.wav")  # a song
    return root


def gtzan(root: Path) -> Path:
    for genre in GENRES:
        write_clip(root / "genres_original" / genre / f"{genre}.00000.wav")
    (root / "genres_original" / "jazz" / "jazz.00054.wav").write_bytes(b"not audio")
    return root


def fsd50k(root: Path) -> Path:
    truth = root / "FSD50K.ground_truth"
    write_table(truth / "eval.csv", ("fname", "labels", "mids"), ("37199", "Bark,Dog", "/m/1,/m/2"), ("5", "Rain", ""))
    write_table(truth / "dev.csv", ("fname", "labels", "mids", "split"), ("9", "Rain", "/m/3", "train"))
    names = enumerate(("Bark", "Dog", "Gong", "Rain"))
    write_table(truth / "vocabulary.csv", *((number, name, f"/m/{number}") for number, name in names))
    for name in ("37199", "5"):
        write_clip(root / "FSD50K.eval_audio" / f"{name}.wav")
    return root


def audioset(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/07yv9,"Vehicle"\n2,/m/0ngt1,"Thunder, storm"\n'
    )
    (root / "eval_segments.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/0ngt1"\n-0BIyqJj9ZU, 30.000, 40.000, "/m/07yv9"\n'
    )
    (root / "balanced_train_segments.csv").write_text('# \n# \n# \nzzzzARaEJEz, 0.000, 10.000, "/m/09x0r"\n')
    write_clip(root / "audio" / "Y--4gqARaEJE.wav")
    return root


def clotho(root: Path, names: Iterable[str], captions: Iterable[Iterable[str]]) -> Path:
    table = root / "clotho_captions_evaluation.csv"
    rows = [(name, *five) for name, five in zip(names, captions, strict=True)]
    for name, *_ in rows:
        write_clip(root / "evaluation" / name)
    write_table(table, ("file_name", *(f"caption_{number}" for number in range(1, 6))), *rows)
    return table
