"""Folders of labeled audio: one subfolder per class, and files that carry their class in their name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.labeled.labeled_set import LabeledSet, LabelError, NamedFile, in_words, numbered
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.source import Rejection
from slap_fast.data.prepare.table_rows import SPLIT_WORDS

GTZAN_GENRES = frozenset({"blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock"})
_GTZAN_DAMAGED = "jazz.00054"
_FOLD = re.compile(r"folds?[ _-]?\d+", re.IGNORECASE)

# {actor}_{sentence}_{emotion}_{level}.wav
CREMA_D = re.compile(r"(?P<actor>\d{4})_[A-Z]{3}_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX|X)", re.IGNORECASE)
_CREMA_D_EMOTIONS = {
    "ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
# {modality}-{vocal channel}-{emotion}-{intensity}-{statement}-{repetition}-{actor}.wav
RAVDESS = re.compile(r"(?P<modality>0[1-3])-(?P<channel>0[12])-(?P<emotion>0[1-8])-0[12]-0[12]-0[12]-(?P<actor>\d\d)")
_RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


def class_folders(source: Path) -> LabeledSet:
    """The audio files below each subfolder, whose name is their class; files beside the subfolders are left out.

    GTZAN is recognized by its ten genres.

    Raises:
        LabelError: the subfolders are folds or splits, or `numbered` rejects the set.
    """
    audio, left_out = _audio_below(source)
    named = [(file, os.path.dirname(file).split(os.sep)[0]) for file in audio]
    left_out += [
        Rejection(file, "no_class", "beside the class folders, not in one") for file, name in named if not name
    ]
    named = [(file, name) for file, name in named if name]
    names = {name for _, name in named}
    for kind, hint, fits in (
        ("folds", "give the table of files and classes", _FOLD.fullmatch),
        ("splits", "give one of these folders", lambda name: name.lower() in SPLIT_WORDS),
    ):
        if names and all(map(fits, names)):
            listed = ", ".join(sorted(names))
            raise LabelError(f"{source}: its folders are {kind}, not classes ({listed}); {hint}")
    gtzan = is_gtzan(source)
    files = [
        NamedFile(
            source / file,
            ("hip hop" if gtzan and name == "hiphop" else in_words(name),),
            note="damaged in the published archive" if gtzan and _GTZAN_DAMAGED in file else None,
        )
        for file, name in named
    ]
    return numbered(source, "gtzan" if gtzan else source.resolve().name, files, left_out=left_out)


def is_gtzan(folder: Path) -> bool:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()} >= GTZAN_GENRES


def crema_d(source: Path) -> LabeledSet | None:
    """CREMA-D (Cao et al., 2014): six emotions; the group of a clip is its actor. None if most names differ."""
    return _by_name(
        source,
        "crema_d",
        CREMA_D,
        _CREMA_D_EMOTIONS.values(),
        lambda match: _CREMA_D_EMOTIONS[match["emotion"].upper()],
    )


def ravdess(source: Path) -> LabeledSet | None:
    """RAVDESS (Livingstone and Russo, 2018), its audio of speech: eight emotions; the group of a clip is its actor.

    Songs (vocal channel 02) and videos are left out. None if most files have other names.
    """
    return _by_name(
        source,
        "ravdess",
        RAVDESS,
        _RAVDESS_EMOTIONS,
        lambda match: _RAVDESS_EMOTIONS[int(match["emotion"]) - 1],
        lambda match: None if match["modality"] == "03" and match["channel"] == "01" else "a song or a video",
    )


def _by_name(
    source: Path,
    name: str,
    pattern: re.Pattern[str],
    classes: Iterable[str],
    label: Callable[[re.Match[str]], str],
    excluded: Callable[[re.Match[str]], str | None] = lambda match: None,
) -> LabeledSet | None:
    audio, left_out = _audio_below(source)
    matches = [(file, pattern.fullmatch(os.path.splitext(os.path.basename(file))[0])) for file in audio]
    if 2 * sum(match is not None for _, match in matches) <= len(matches):
        return None
    files, seen = [], set()
    for file, match in matches:
        if match is None:
            left_out.append(Rejection(file, "no_class", f"not named like a file of {name}"))
        elif (why := excluded(match)) is not None:
            left_out.append(Rejection(file, "other_subset", why))
        elif match.group(0) in seen:
            # Copies of RAVDESS on Kaggle have a second tree of the same files.
            left_out.append(Rejection(file, "same_name", "a second file of this name"))
        else:
            seen.add(match.group(0))
            files.append(NamedFile(source / file, (label(match),), group=match["actor"]))
    return numbered(source, name, files, classes=sorted(classes), left_out=left_out)


def _audio_below(source: Path) -> tuple[list[str], list[Rejection]]:
    files, left_out = walk_folder(source)
    return [file for file in files if _is_audio(file)], left_out


def _is_audio(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS


def has_audio(files: Iterable[str]) -> bool:
    return any(map(_is_audio, files))
