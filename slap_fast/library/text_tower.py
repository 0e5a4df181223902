"""Text tower of a library: embeds the texts of queries with onnxruntime, without torch and the rest of the model.

`text/` in a library holds the text tower as ONNX, its tokenizer and a description. It is derived from the model and can
be deleted: texts are then embedded by the model, which takes seconds to load. The graph is optimized when it is
written, and its weights are in a file of their own, which is mapped into memory. So a tower of 150 M parameters embeds
its first text 0.4 s after it is asked for.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slap_fast.errors import MissingExtraError, ModelError, SlapFastError, one_line
from slap_fast.library.database import Database
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.models.texts import split_texts, warn_of_cut_texts
from slap_fast.runtime.durable_files import sync_folder
from slap_fast.runtime.onnx_runtime import import_onnxruntime

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)

FOLDER_NAME = "text"
_GRAPH, _WEIGHTS, _TOKENIZER, _DESCRIPTION = "text.onnx", "text.onnx.data", "tokenizer.json", "text.json"
_VERSION = 2
# Embedded when the tower is written and each time it is opened: weights that a power cut left as zeros are found.
# All weights are read by `has_text_tower` alone: that takes a second.
_CHECK_TEXT = "a dog barks"
# Rounding differs between CPUs by about 1e-6; other weights differ by far more.
_TOLERANCE = 1e-4
_SMALLEST_MAPPED = 1024  # bytes of weights that are in the file of the weights, not in the graph


class _Damaged(SlapFastError):
    """The exported tower cannot be used; the message says why."""


class _Opened(NamedTuple):
    session: Any
    tokenizer: Any
    max_length: int
    check: np.ndarray  # [D] float32


def has_text_tower(library: Path) -> bool:
    """Whether a library has the exported text tower of its model, complete and undamaged; reads all of it."""
    with Database(library) as database:
        weights = ModelIdentity.from_meta(database.meta).weights
    folder = library / FOLDER_NAME
    try:
        described = _read_description(folder, weights)
        _check_content(folder, described, described["files"])
    except _Damaged as error:
        if folder.exists():
            logger.warning("%s: %s; it is written again", folder, error)
        return False
    return True


def export_text_tower(model: SLAP, library: Path) -> bool:
    """Write the text tower of a library's model into `text/`, unless it is there already.

    It appears complete or not at all, and is compared with the model. Searches that have an earlier one open go on
    with it. One process at a time: the caller holds the lock of the library's writer.

    Args:
        model: the model of the library.
        library: folder of the library.

    Returns:
        Whether it was written.

    Raises:
        MissingExtraError: a package for ONNX is not installed.
        ModelError: the tower cannot be exported, or its embeddings deviate from the model's.
        OSError: a file cannot be written.
    """
    if has_text_tower(library):
        return False
    from slap_fast.models.portable.files import export_towers

    model.require("text_encoder")
    with Database(library) as database:
        identity = ModelIdentity.from_meta(database.meta)
    if model.device.type != "cpu":
        from slap_fast.models.slap import SLAP

        model = SLAP.from_pretrained(identity.name)
    with tempfile.TemporaryDirectory(dir=library, prefix=".text.") as scratch:
        towers, made = Path(scratch) / "towers", Path(scratch) / FOLDER_NAME
        with _readable(towers.parent) as readable:
            export_towers(model, Path(readable) / towers.name, "onnx", audio=False, largest_file=0)
        made.mkdir()
        _optimize(towers / _GRAPH, made)
        _write_tokenizer(model, made)
        _write_description(model, made, identity.weights)
        _replace(library / FOLDER_NAME, made)
    _compare(library, identity, model)
    return True


class TextTower:
    """Embeds texts as the model of a library does. Safe to share between threads.

    Args:
        library: folder of the library.
        identity: of its model.
        model: returns the model, for a library without an exported tower.
    """

    def __init__(self, library: Path, identity: ModelIdentity, model: Callable[[], SLAP]) -> None:
        self._library = library
        self._identity = identity
        self._model = model
        self._opened: _Opened | None = None
        self._missing = False
        self._calls = 0

    def encode(self, texts: str | Iterable[str]) -> np.ndarray:
        """`[N, D]` float32 embeddings of unit length, as `SLAP.encode_text` gives them.

        Texts of more tokens than the model takes are cut, and a warning with their number is logged. If the library has
        no exported tower, or it is damaged, the whole model is loaded, which a logged warning reports.

        Raises:
            ValueError: an entry is not a valid string.
            LibraryError: the model is not the one of the library any more, or an embedding is not finite.
            ModelError: the model cannot be loaded.
        """
        texts = split_texts(texts)
        if self._opened is None and not self._missing:
            try:
                self._opened = _open(self._library / FOLDER_NAME, self._identity.weights, for_many=False)
            except _Damaged as error:
                self._missing = True
                logger.warning(
                    "%s: %s; the whole model is loaded instead; to write it again: slap-fast index %s",
                    self._library / FOLDER_NAME,
                    error,
                    self._library,
                )
        self._calls += 1
        if self._calls == 2:
            self.warm_up()
        return self._model().encode_text(texts).numpy() if self._opened is None else self._encode(self._opened, texts)

    def warm_up(self) -> None:
        """Load for many texts instead of for one: it takes longer once, and each text less. The second call does so."""
        self._calls = max(self._calls, 2)
        if not self._missing:
            with suppress(_Damaged):  # reported by `encode`
                self._opened = _open(self._library / FOLDER_NAME, self._identity.weights, for_many=True)

    def is_cut(self, text: str) -> bool:
        """Whether `encode` cuts a text, of which it logs a warning, but which a page has to tell its user.

        Call it after `encode`: before, the whole model is loaded.
        """
        if self._opened is not None:
            return _tokenize(self._opened, text)[1]
        from slap_fast.models.encoding import tokenizer_of

        model = self._model()
        return len(tokenizer_of(model)(text, verbose=False)["input_ids"]) > model.config.text.max_length

    def _encode(self, opened: _Opened, texts: list[str]) -> np.ndarray:
        rows, cut = [np.empty((0, len(opened.check)), np.float32)], []
        for text in texts:
            ids, is_cut = _tokenize(opened, text)
            if is_cut:
                cut.append(text)
            rows.append(_run(opened.session, ids))
        warn_of_cut_texts(cut, len(texts), opened.max_length)
        embeddings = np.concatenate(rows)
        if not np.isfinite(embeddings).all():
            raise LibraryError(f"{self._identity.name}: the model gives embeddings of texts that are not finite")
        return embeddings


def _tokenize(opened: _Opened, text: str) -> tuple[list[int], bool]:
    encoded = opened.tokenizer.encode(text)
    return encoded.ids, bool(encoded.overflowing)


def _run(session: Any, ids: list[int]) -> np.ndarray:
    tokens = np.array([ids], np.int64)
    # One text at a time: in a padded batch, a text's rounding would depend on the others.
    return session.run(None, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})[0]


# Reading


def _read_description(folder: Path, weights: str) -> dict[str, Any]:
    try:
        described = json.loads((folder / _DESCRIPTION).read_bytes())
        if described["version"] != _VERSION:
            raise _Damaged(f"is of version {described['version']}, this version reads {_VERSION}")
        if described["weights"] != weights:
            raise _Damaged("is of another model than the library")
        for name, size in described["files"].items():
            if (found := (folder / name).stat().st_size) != size:
                raise _Damaged(f"{name} has {found} bytes instead of {size}")
    except FileNotFoundError as error:
        raise _Damaged("the library has no exported text tower") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Damaged(f"is damaged ({one_line(error)})") from error
    return described


def _check_content(folder: Path, described: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        try:
            is_same = _crc32(folder / name) == described["crc32"][name]
        except (OSError, LookupError, TypeError) as error:
            raise _Damaged(f"is damaged ({one_line(error)})") from error
        if not is_same:
            raise _Damaged(f"is damaged ({name} was changed after it was written)")


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _open(folder: Path, weights: str, *, for_many: bool) -> _Opened:
    described = _read_description(folder, weights)
    _check_content(folder, described, (_GRAPH, _TOKENIZER))
    try:
        with _readable(folder) as path:
            session = _session(f"{path}/{_GRAPH}", for_many=for_many)
        check = np.array(described["check"], np.float32)
        opened = _Opened(session, _read_tokenizer(folder, described), int(described["max_length"]), check)
        deviation = float(np.abs(_run(session, _tokenize(opened, _CHECK_TEXT)[0])[0] - check).max())
    except ImportError as error:
        raise _Damaged(
            f'cannot be used, because {error.name} is not installed: pip install "slap-fast[library]"'
        ) from error
    except BaseException as error:  # onnxruntime has many types, and the Rust library BaseException if it panics
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise _Damaged(f"is damaged ({one_line(error)})") from error
    if not deviation <= _TOLERANCE:  # NaN too
        raise _Damaged(f"is damaged (a text's embedding deviates by {deviation:.2g} from the one when it was written)")
    return opened


def _session(path: str, *, for_many: bool) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done when it was written
    # A thread that waits in a loop takes a core from the search of the windows, and from others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not for_many:
        # Packing copies all weights: 0.8 s for 150 M parameters, of which a text gains 0.1 s.
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _read_tokenizer(folder: Path, described: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str((folder / _TOKENIZER).read_text(encoding="utf-8"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(described["max_length"]), direction=described["truncation_side"])
    return tokenizer


@contextmanager
def _readable(folder: Path) -> Iterator[str]:
    """A path of a folder that onnxruntime takes, which is valid UTF-8; that of a folder need not be."""
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield os.fspath(folder)


# Writing


def _optimize(graph: Path, folder: Path) -> None:
    """Write a graph with the optimizations that any version of onnxruntime can read, and its weights beside it."""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise MissingExtraError('a text tower needs onnxruntime: pip install "slap-fast[library]"') from error

    with _readable(graph.parent) as source, _readable(folder) as target:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{target}/{_GRAPH}"
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", _WEIGHTS)
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_SMALLEST_MAPPED))
        onnxruntime.InferenceSession(f"{source}/{graph.name}", options, providers=["CPUExecutionProvider"])


def _write_tokenizer(model: SLAP, folder: Path) -> None:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("the model's tokenizer has no tokenizer.json, which a search without torch needs")
    (folder / _TOKENIZER).write_text(backend.to_str(), encoding="utf-8")


def _write_description(model: SLAP, folder: Path, weights: str) -> None:
    described = {
        "version": _VERSION,
        "weights": weights,
        "max_length": model.config.text.max_length,
        "truncation_side": getattr(model.tokenizer, "truncation_side", "right"),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "crc32": {path.name: _crc32(path) for path in sorted(folder.iterdir())},
        "check": model.encode_text(_CHECK_TEXT)[0].tolist(),
    }
    (folder / _DESCRIPTION).write_text(json.dumps(described) + "\n", encoding="utf-8")


def _replace(folder: Path, made: Path) -> None:
    """Put a new folder in the place of an old one, which nobody reads by name for longer than a moment."""
    for path in (*made.iterdir(), made):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if folder.exists():
        os.replace(folder, made.with_name("old"))
    os.replace(made, folder)
    sync_folder(folder.parent)


def _compare(library: Path, identity: ModelIdentity, model: SLAP) -> None:
    """Compare the tower with the model; delete it if it is not the same."""
    from slap_fast.models.encoding import embed_token_ids, tokenizer_of

    texts = [_CHECK_TEXT, "", "[CLS] Grüße 🐕 犬が吠える", "rain " * model.config.text.max_length]
    # `encode_text` would warn of the text that is cut.
    expected = tokenizer_of(model)(texts, truncation=True, max_length=model.config.text.max_length)["input_ids"]
    try:
        opened = _open(library / FOLDER_NAME, identity.weights, for_many=False)
        found = np.concatenate([_run(opened.session, _tokenize(opened, text)[0]) for text in texts])
        deviation = float(np.abs(found - embed_token_ids(model, expected).detach().numpy()).max())
        reason = "" if deviation <= _TOLERANCE else f"its embeddings deviate by {deviation:.2g}"
    except _Damaged as error:
        reason = str(error)
    if reason:
        shutil.rmtree(library / FOLDER_NAME)
        raise ModelError(f"{identity.name}: the text tower was exported, but {reason}; it was not kept")
