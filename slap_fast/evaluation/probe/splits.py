"""Splits of a labeled set into training and test clips: those of its publisher wherever it has some.

Random folds leak: clips cut from one recording, in training and test folds, raise scores (UrbanSound8K: 0.84 to 0.93,
open_clip issue 1201). They are the last resort, and come with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from slap_fast.data.labeled import LabeledFile, LabeledSet, LabelError
from slap_fast.data.labeled.labeled_set import TEST_SPLITS
from slap_fast.errors import MissingExtraError

RANDOM_FOLDS = 5
INNER_FOLDS = 3
_VALIDATION_SPLITS = frozenset({"val", "valid", "validation"})


@dataclass(frozen=True)
class Split:
    """One fit and its test.

    Attributes:
        name: such as `fold 3` or `eval`.
        train, test: positions of clips.
        inner: `(fit, validation)` positions in `train`, to choose the regularization.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    inner: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Splits:
    """
    Attributes:
        kind: how the clips are split, in words.
        warnings: what a reader of the scores must be told.
    """

    kind: str
    splits: list[Split]
    warnings: list[str] = field(default_factory=list)


def choose_splits(labeled: LabeledSet, *, test_split: str | None = None, seed: int = 0) -> Splits:
    """Published folds, else published splits, else folds that keep groups together, else random folds.

    Args:
        test_split: the split to test on; all others are for training. None: the published test split.
        seed: of folds that are not published.

    Raises:
        LabelError: some clips have a fold or split and others do not, `test_split` does not exist, or there is nothing
            to train on.
        MissingExtraError: scikit-learn is not installed.
    """
    if test_split is None and _all_or_none(labeled, "fold"):
        return _published_folds(labeled, seed)
    if test_split is not None or len(labeled.splits()) > 1:
        _all_or_none(labeled, "split")
        return _published_splits(labeled, test_split, seed)
    made = _grouped_folds(labeled, seed)
    if len(labeled.splits()) == 1:
        made.warnings.insert(
            0, f"only the split {labeled.splits()[0]!r} is here, so training and test clips are both of it"
        )
    return made


def _published_folds(labeled: LabeledSet, seed: int) -> Splits:
    files, strata, groups = labeled.files, _strata(labeled), _groups(labeled.files)
    fold = np.array([file.fold for file in files])
    numbers = sorted(set(fold.tolist()))
    if len(numbers) < 2:
        raise LabelError(f"all {len(files)} clips are of fold {numbers[0]}; a probe needs at least two folds")
    splits = []
    for number in numbers:
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(numbers) > 2:
            inner = _folds_of(np.zeros(len(train), np.int64), fold[train], INNER_FOLDS, seed)
        else:
            inner = _folds_of(strata[train], groups[train], INNER_FOLDS, seed)
        splits.append(Split(f"fold {number}", train, test, inner))
    return Splits(f"{len(numbers)} published folds", splits, _separated_groups(labeled, splits))


def _published_splits(labeled: LabeledSet, test_split: str | None, seed: int) -> Splits:
    names = np.array([str(file.split).lower() for file in labeled.files])
    if test_split is None:
        chosen = sorted({name for name in names.tolist() if name in TEST_SPLITS})
        if not chosen:
            raise LabelError(f"none of its splits is a test split ({', '.join(labeled.splits())}); give --test-split")
    else:
        chosen = [test_split.lower()]
    is_test = np.isin(names, chosen)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    if not len(test) or not len(train):
        missing = "test" if not len(test) else "train"
        raise LabelError(
            f"no clip to {missing} on: the test split is {chosen[0]!r} of {', '.join(labeled.splits()) or 'none'}"
        )
    validation = np.isin(names[train], sorted(_VALIDATION_SPLITS))
    if validation.any() and not validation.all():
        inner = [(np.flatnonzero(~validation), np.flatnonzero(validation))]
    else:
        inner = _folds_of(_strata(labeled)[train], _groups(labeled.files)[train], INNER_FOLDS, seed)
    others = ", ".join(sorted(set(names[train].tolist())))
    splits = [Split(chosen[0], train, test, inner)]
    return Splits(f"published splits: trained on {others}", splits, _separated_groups(labeled, splits))


def _grouped_folds(labeled: LabeledSet, seed: int) -> Splits:
    files, strata, groups = labeled.files, _strata(labeled), _groups(labeled.files)
    grouped = len(set(groups.tolist())) < len(files)
    folds = min(RANDOM_FOLDS, len(set(groups.tolist())))
    if folds < 2:
        raise LabelError("all clips are of one recording or speaker, which cannot be in both training and test clips")
    splits = [
        Split(f"fold {number}", train, test, _folds_of(strata[train], groups[train], INNER_FOLDS, seed))
        for number, (train, test) in enumerate(_folds_of(strata, groups, folds, seed), 1)
    ]
    warned = _small_classes(labeled, folds)
    if grouped and all(file.group is not None for file in files):
        kind = f"{folds} folds of whole recordings or speakers"
        return Splits(kind, splits, warned)
    leak = (
        "the data has no folds: these are random, so clips of one recording may be in training and test folds, and "
        "scores may be too high; give a table with a column `fold`, `split` or `group`"
    )
    return Splits(f"{folds} random folds", splits, [leak, *warned])


def _separated_groups(labeled: LabeledSet, splits: Sequence[Split]) -> list[str]:
    groups = _groups(labeled.files)
    separated = {int(group) for split in splits for group in np.intersect1d(groups[split.train], groups[split.test])}
    if not separated:
        return []
    first = next(file.group for file, group in zip(labeled.files, groups, strict=True) if int(group) in separated)
    return [
        f"{len(separated)} recordings or speakers are in both training and test clips, so scores may be too high; the "
        f"first: {first}"
    ]


def _small_classes(labeled: LabeledSet, folds: int) -> list[str]:
    counts = np.bincount([label for file in labeled.files for label in file.labels], minlength=len(labeled.classes))
    small = [f"{name} ({count})" for name, count in zip(labeled.classes, counts, strict=True) if count < folds]
    return [f"fewer clips than the {folds} folds: {', '.join(small)}"] if small else []


def _folds_of(strata: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(train, test)` positions: groups stay together, and class shares are as equal as that allows."""
    try:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold
    except ImportError as error:
        raise MissingExtraError('probes need scikit-learn: pip install "slap-fast[eval]"') from error
    n_groups = len(np.unique(groups))
    if n_groups < 2:  # nothing can be held out but single clips
        groups, n_groups = np.arange(len(strata)), len(strata)
    folds = min(folds, n_groups)
    if folds < 2:
        return []
    counts = np.unique(strata, return_counts=True)[1]
    if len(counts) == 1 or counts.max() < folds:
        shuffled = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
        return list(GroupKFold(folds).split(strata, groups=shuffled))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of small classes, which `_small_classes` reports
        # The one with groups takes minutes for 50,000 of them.
        if n_groups == len(strata):
            return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(strata, strata))
        return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(strata, strata, groups))


def _all_or_none(labeled: LabeledSet, attribute: str) -> bool:
    """Whether all clips have the attribute.

    Raises:
        LabelError: only some have it.
    """
    missing = [file for file in labeled.files if getattr(file, attribute) is None]
    if not missing:
        return True
    if len(missing) < len(labeled.files):
        raise LabelError(
            f"{missing[0].path} has no {attribute}, but {len(labeled.files) - len(missing)} other clips have one; give "
            f"every clip a {attribute}, or none"
        )
    return False


def _groups(files: Sequence[LabeledFile]) -> np.ndarray:
    """`[N]` numbers: equal for clips that must not be separated; a clip without a group is one of its own."""
    names = [("clip", str(at)) if file.group is None else ("group", file.group) for at, file in enumerate(files)]
    number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names])


def _strata(labeled: LabeledSet) -> np.ndarray:
    if labeled.multi_label:
        return np.zeros(len(labeled.files), dtype=np.int64)
    return np.array([file.labels[0] for file in labeled.files])
