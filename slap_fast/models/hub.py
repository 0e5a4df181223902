"""Models of the Hugging Face hub: what is a hub id, the download of weights, JSON and tokenizer, and the upload."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from slap_fast.errors import ModelError, one_line

logger = logging.getLogger(__name__)

# Formats that cannot hold code. Pickle (.bin, .pt, .ckpt) and Python files are never downloaded.
_ALLOWED = ("*.safetensors", "*.json")
_CODE = re.compile(r"\.(bin|pt|pth|ckpt|pkl|pickle|py|npy|npz|h5|msgpack)$", re.IGNORECASE)
_PREFIX = "hf://"
_REPO_ID = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", re.ASCII | re.IGNORECASE)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class HubId(NamedTuple):
    """A repository `owner/name` of the hub; `revision` is a branch, a tag or a commit, None for the main branch."""

    repo_id: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def hub_id(name_or_folder: str | os.PathLike[str]) -> HubId | None:
    """The hub id that a text names, or None if it names a local folder.

    `owner/name`, `owner/name@revision` and `hf://owner/name@revision` are hub ids, unless a folder of that name exists.

    Raises:
        ModelError: it is neither: it looks like a path, but nothing exists there.
    """
    if isinstance(name_or_folder, os.PathLike) or os.path.exists(name_or_folder):
        return None
    text = name_or_folder
    is_explicit = text.startswith(_PREFIX)
    name, _, revision = text.removeprefix(_PREFIX).partition("@")
    owner = name.partition("/")[0]
    if not is_explicit:
        if text.startswith((".", "/", "~")) or "\\" in text or name.count("/") > 1:
            raise ModelError(f"{text}: no such folder")
        if "/" not in name:
            raise ModelError(f"{text}: no such folder; a model of the Hugging Face hub is named as owner/name")
        if os.path.exists(owner):
            raise ModelError(
                f"{text}: no such folder, but {owner}/ exists here, so this looks like a path; write {_PREFIX}{text} "
                "for the model of the Hugging Face hub"
            )
    if not _REPO_ID.fullmatch(name) or ("@" in text and not revision):
        raise ModelError(
            f"{text}: no such folder, and no id of the Hugging Face hub either, which is owner/name or "
            "owner/name@revision"
        )
    return HubId(name, revision or None)


def model_folder(
    name_or_folder: str | os.PathLike[str] | HubId, *, revision: str | None = None, token: str | None = None
) -> Path:
    """A local folder as it is; for a hub id, the folder of the download.

    Only safetensors and JSON files are downloaded, into the cache of `huggingface_hub` (`HF_HOME`): nothing that is
    fetched can run code. An interrupted download continues where it stopped. If the hub cannot be reached, or with
    `HF_HUB_OFFLINE=1`, the last download is used, if it is complete.

    Args:
        name_or_folder: a folder, or a hub id as in `hub_id`. A `Path` is always a folder.
        revision: branch, tag or commit of a hub id; None: that of the id, or the main branch.
        token: of the hub; None: `HF_TOKEN`, or what `hf auth login` stored.

    Raises:
        ModelError: there is no such folder or model, it cannot be accessed, or the download fails; the message says
            what to do.
    """
    found = name_or_folder if isinstance(name_or_folder, HubId) else hub_id(name_or_folder)
    if isinstance(name_or_folder, HubId):
        name_or_folder = str(name_or_folder)
    if found is None:
        if revision is not None:
            raise ModelError(f"{os.fspath(name_or_folder)} is a local folder, which has no revision {revision!r}")
        return Path(name_or_folder)
    if revision is not None:
        if found.revision not in (None, revision):
            raise ModelError(f"{name_or_folder}: it has a revision, but revision={revision!r} is given too")
        found = HubId(found.repo_id, revision)
    try:
        return _download(found, token)
    except ModelError:
        raise
    except Exception as error:  # The client raises unrelated types, of itself and of its HTTP library.
        raise _download_error(error, found) from error


def _download(model: HubId, token: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    is_cached_only = False
    try:
        files = [file.rfilename for file in api.model_info(model.repo_id, revision=model.revision).siblings or []]
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        is_cached_only, failure = True, error
    else:
        unsafe = [name for name in files if _CODE.search(name)]
        if "model.safetensors" not in files:
            instead = f" (it has {_names(unsafe)}, which can hold code and are never loaded)" if unsafe else ""
            raise ModelError(f"{model}: the model on the hub has no model.safetensors{instead}")
        if unsafe:
            logger.warning("%s: not downloaded, because they can hold code: %s", model, _names(unsafe))
    try:
        folder = snapshot_download(
            model.repo_id,
            revision=model.revision,
            allow_patterns=list(_ALLOWED),
            token=token,
            local_files_only=is_cached_only,
        )
    except FileNotFoundError as error:  # no complete download in the cache
        raise _download_error(failure if is_cached_only else error, model) from error
    if is_cached_only and not is_offline(failure):
        logger.warning(
            "the hub cannot be reached (%s); using the download of %s at commit %s",
            one_line(failure),
            model,
            Path(folder).name[:12],
        )
    return Path(folder)


def upload_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool | None = None,
    commit_message: str = "Upload the model",
    token: str | None = None,
    keep: str | None = None,
) -> tuple[str, bool]:
    """Create the repository if it does not exist, and upload files in one commit.

    Args:
        repo_id: `owner/name`.
        files: content or local path by path in the repository.
        private: of a new repository; None: the default of the account.
        keep: a path of `files` that is left as it is if the repository has it.

    Returns:
        The URL of the commit, and whether `keep` was left as it is.

    Raises:
        ModelError: the hub cannot be reached or refuses the upload, `repo_id` is no id, or `private` is set and the
            repository exists as a public one. Nothing is committed then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    target = HubId(checked_repo_id(repo_id), None)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
        if private and not info.private:
            raise ModelError(
                f"{repo_id}: the repository exists and is public; make it private in its settings first, or publish "
                "under another name"
            )
        is_kept = keep in {file.rfilename for file in info.siblings or []}
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else os.fspath(content))
            for name, content in files.items()
            if not (is_kept and name == keep)
        ]
        commit = api.create_commit(repo_id, operations, commit_message=commit_message)
    except ModelError:
        raise
    except Exception as error:  # The client raises unrelated types, of itself and of its HTTP and Xet libraries.
        raise _upload_error(error, target) from error
    return commit.commit_url, is_kept


def checked_repo_id(repo_id: str) -> str:
    """
    Raises:
        ModelError: it is not `owner/name`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not _REPO_ID.fullmatch(repo_id):
        raise ModelError(
            f"{repo_id}: no id of the Hugging Face hub; give owner/name, of letters, digits, '-', '_', '.'"
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ModelError(f"{repo_id}: no id of the Hugging Face hub: {one_line(error)}") from error
    return repo_id


def is_offline(error: Exception) -> bool:
    """Whether the client refused to use the network because of `HF_HUB_OFFLINE=1`."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled)


def _download_error(error: Exception, model: HubId) -> ModelError:
    """What an error of `huggingface_hub` means for the user, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    cache = constants.HF_HUB_CACHE
    if is_offline(error):
        return ModelError(
            f"{model}: no such folder, no complete download in the cache {cache}, and the hub is switched off by "
            "HF_HUB_OFFLINE=1; unset it, or give a folder"
        )
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{model.repo_id}"
        return ModelError(f"{model}: access is restricted; accept its terms at {page}, then {_LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{model}: the model has no revision {model.revision!r}; give a branch, a tag or a commit")
    if (refused := _token_error(error, model)) is not None:
        return refused
    if isinstance(error, RepositoryNotFoundError) or _status(error) == 401:
        return ModelError(
            f"{model}: no such folder, and no such model at {constants.ENDPOINT}, or it is private; check the name, or "
            f"{_LOGIN}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(f"{model}: the disk of {cache} is full; free space, or set HF_HOME to another disk")
    if isinstance(error, OSError) and error.filename:
        return ModelError(f"{model}: {error.filename}: {error.strerror}")
    return _other_error(error, f"{model}: no such folder, and")


def _upload_error(error: Exception, model: HubId) -> ModelError:
    if is_offline(error):
        return ModelError(f"{model}: nothing was uploaded: the hub is switched off by HF_HUB_OFFLINE=1; unset it")
    if (refused := _token_error(error, model)) is not None:
        return refused
    if _status(error) in (401, 404):
        return ModelError(f"{model}: nothing was uploaded: the hub asks for a token with write access; {_LOGIN}")
    return _other_error(error, f"{model}: nothing was uploaded:")


def _token_error(error: Exception, model: HubId) -> ModelError | None:
    status = _status(error)
    if status == 401 and "Invalid credentials" in str(error):
        return ModelError(f"{model}: the hub rejects the token as invalid; {_LOGIN}")
    if status == 403:
        return ModelError(f"{model}: the hub refuses access with this token ({_reason(error)}); use one that has it")
    return None


def _other_error(error: Exception, start: str) -> ModelError:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        return ModelError(f"{start} it is no id of the Hugging Face hub: {one_line(error)}")
    if (status := _status(error)) is not None:
        return ModelError(
            f"{start} the hub at {constants.ENDPOINT} answers with status {status} ({_reason(error)}); try again later"
        )
    problem = "gave something that cannot be used" if isinstance(error, ValueError) else "cannot be reached"
    return ModelError(f"{start} the hub at {constants.ENDPOINT} {problem} ({type(error).__name__}: {one_line(error)})")


def _status(error: Exception) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _reason(error: Exception) -> str:
    """The hub's own words, without the request that the client puts before them."""
    return one_line(getattr(error, "server_message", None) or error)


def _names(files: list[str], limit: int = 5) -> str:
    return ", ".join(files[:limit]) + (f" and {len(files) - limit} more" if len(files) > limit else "")
