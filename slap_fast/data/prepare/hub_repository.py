"""Datasets of the Hugging Face hub: parses `hf://` paths and opens a split as a stream of rows, by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.errors import MissingExtraError, one_line

_PATH = re.compile(r"hf://(?:datasets/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<config>[^/]+))?/?")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubPath:
    """`hf://owner/name[@revision][/config]`; a `/` in a revision is written `%2F`, as in `refs%2Fconvert%2Fparquet`."""

    repo: str
    revision: str | None
    config: str | None

    @classmethod
    def parse(cls, path: str) -> HubPath:
        """Raises DatasetError if it is not such a path."""
        match = _PATH.fullmatch(path)
        if match is None:
            raise DatasetError(f"{path}: not a dataset of the hub; write hf://owner/name[@revision][/config]")
        return cls(match["repo"], unquote(match["revision"]) if match["revision"] else None, match["config"])

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.repo}{revision}{f'/{self.config}' if self.config else ''}"


@dataclass(frozen=True)
class HubSplit:
    """A split of a dataset of the hub, at one commit.

    Attributes:
        builder: the module of `datasets` that reads it: `parquet`, `webdataset`, `audiofolder`, ...
        audio_columns: of the type Audio. Their cells are `{"bytes", "path"}`, or in an `audiofolder` the URL of a file.
        class_names: of the ClassLabel columns, whose cells are numbers.
        files: URLs of the files that it is read from.
    """

    path: HubPath
    commit: str
    split: str
    builder: str
    columns: list[str]
    audio_columns: list[str]
    class_names: dict[str, list[str]]
    files: list[str]
    stream: Any

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows, in a fixed order.

        Args:
            columns: only these, so that the bytes of the others are not downloaded; in Parquet alone.

        Raises:
            DatasetError: the stream breaks off.
        """
        number = 0
        try:
            stream = self.stream
            if columns is not None:
                stream = _builder(self.path, self.commit, columns=list(columns)).as_streaming_dataset()[self.split]
            for row in stream:
                yield row
                number += 1
        except Exception as error:  # unrelated types, of the library, of Arrow and of HTTP
            advice = "run the same command again to continue"
            if type(error).__name__.startswith("Arrow"):
                advice += "; if it fails at the same row, a file of the dataset is damaged"
            raise DatasetError(
                f"{self.path}: reading the split {self.split!r} failed after row {number} ({type(error).__name__}: "
                f"{one_line(error)}); {advice}"
            ) from error

    def url(self, file: str) -> str:
        return f"{self.url_prefix}{file}"

    @property
    def url_prefix(self) -> str:
        return f"hf://datasets/{self.path.repo}@{self.commit}/"


def open_split(path: HubPath, split: str | None) -> HubSplit:
    """Opens a split for streaming. Audio is not decoded, and no code of the repository is run.

    Args:
        split: its name; None: the only one.

    Raises:
        DatasetError: the dataset cannot be reached, accessed or read, or a split or configuration has to be chosen.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        from datasets import Audio, ClassLabel, Value
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtraError(f'{path}: reading it needs datasets: pip install "slap-fast[datasets]"') from error
    try:
        info = HfApi().dataset_info(path.repo, revision=path.revision)
    except Exception as error:
        raise _access_error(error, path) from error
    script = f"{path.repo.rpartition('/')[2]}.py"
    if any(file.rfilename == script for file in info.siblings or []):
        raise DatasetError(
            f"{path}: {script} in the dataset is a program that reads its data, and is not run; try the copy that the "
            f"hub converts: hf://{path.repo}@refs%2Fconvert%2Fparquet"
        )
    try:
        builder = _builder(path, str(info.sha))
        splits = builder.as_streaming_dataset()
    except Exception as error:
        raise _loading_error(error, path) from error
    chosen = split or (next(iter(splits)) if len(splits) == 1 else None)
    if chosen not in splits:
        asked = f"has no split {split!r}" if split else "has several splits"
        raise DatasetError(f"{path}: {asked}; choose one with --split: {', '.join(map(str, splits))}")
    stream = splits[chosen]
    features = stream.features or {}
    columns = list(features)
    if not columns:  # CSV and JSON
        try:
            columns = list(next(iter(stream), {}))
        except Exception as error:
            raise _loading_error(error, path) from error
    audio = [name for name, feature in features.items() if isinstance(feature, Audio)]
    as_bytes = {"bytes": Value("binary"), "path": Value("string")}
    for name in audio:
        # Not Audio(decode=False): to encode rows of this type, datasets imports torchcodec.
        stream = stream.cast_column(name, Value("string") if stream.builder_name == "audiofolder" else as_bytes)
    labels = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    class_names = {name: list(label.names) for name, label in labels.items() if isinstance(label, ClassLabel)}
    files = [str(file) for file in (builder.config.data_files or {}).get(chosen, [])]
    return HubSplit(
        path, str(info.sha), str(chosen), str(stream.builder_name), columns, audio, class_names, files, stream
    )


def _builder(path: HubPath, commit: str, **options: Any) -> Any:
    """What `load_dataset(streaming=True)` reads with, but without threads that decode audio."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(path.repo, path.config, revision=commit, **options)
    if hasattr(builder.config, "decode_num_threads"):
        builder.config.decode_num_threads = 0
    return builder


def _access_error(error: Exception, path: HubPath) -> DatasetError:
    """What an error of the hub means for the user."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        what = "HF_HUB_OFFLINE=1 switches the hub off; unset it, or download the dataset first and give its folder"
    elif isinstance(error, GatedRepoError):
        what = f"access is restricted; accept its terms at {constants.ENDPOINT}/datasets/{path.repo}, then {_LOGIN}"
    elif isinstance(error, RevisionNotFoundError):
        what = f"it has no revision {path.revision!r}; give a branch, a tag or a commit"
    elif status == 401 and "Invalid credentials" in str(error):
        what = f"the hub rejects the token; {_LOGIN}"
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        what = f"no such dataset at {constants.ENDPOINT}, or it is private; check the name, or {_LOGIN}"
    elif status == 403:
        what = f"the hub refuses access with this token ({one_line(error)}); use one that has it"
    elif status is not None:
        what = f"the hub answers with status {status} ({one_line(error)}); try again later"
    elif isinstance(error, HFValidationError):
        what = f"not a name of the hub ({one_line(error)})"
    else:
        what = f"the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {one_line(error)})"
    return DatasetError(f"{path}: {what}")


def _loading_error(error: Exception, path: HubPath) -> DatasetError:
    """What an error of `datasets` means for the user."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    text = one_line(error, limit=500)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        from huggingface_hub import constants

        page = f"{constants.ENDPOINT}/datasets/{path.repo}"
        return DatasetError(f"{path}: access is restricted; accept its terms at {page}, then {_LOGIN}")
    if isinstance(error, HfHubHTTPError):
        return _access_error(error, path)
    if found := re.search(r"(?:available configs: |Available: )\[(.*?)\]", text):
        asked = f"has no configuration {path.config!r}" if path.config else "has several configurations"
        example = HubPath(path.repo, path.revision, "CONFIGURATION")
        return DatasetError(f"{path}: it {asked}; give one, as {example}: {found[1].replace(chr(39), '')}")
    return DatasetError(
        f"{path}: datasets cannot read it ({type(error).__name__}: {text}); download its files and give a table, tars "
        "or a folder of them"
    )
