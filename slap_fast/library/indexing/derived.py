"""What is derived from a library after an update, so that searches start fast; all of it can be deleted."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slap_fast.errors import SlapFastError
from slap_fast.library.clusters import DEFAULT_VOCABULARY, read_vocabulary
from slap_fast.library.database import Database
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.text_tower import TextTower, export_text_tower, has_text_tower
from slap_fast.library.vector_index import build
from slap_fast.library.vector_index.stored_vectors import FOLDER

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)


def derive(library: Path, database: Database, model: Callable[[], SLAP], *, progress: bool = False) -> None:
    """Write what is missing or out of date. Without it, searches are slower: so no failure is an error here.

    Args:
        library: folder of the library; the caller holds its lock.
        database: of the library.
        model: loads the model of the library.
        progress: say on stderr what takes long.
    """
    try:
        if not has_text_tower(library):
            if progress:
                print("writing the text tower, once, so that searches start in a second", file=sys.stderr, flush=True)
            export_text_tower(model(), library)
    except (SlapFastError, OSError) as error:
        logger.warning("%s: searches load the whole model, because its text tower was not written: %s", library, error)
    _write_vectors(library, database, model)


def remove_vectors(library: Path) -> None:
    """Delete the embeddings of a library that has none any more, as far as they are derived."""
    try:
        shutil.rmtree(library / FOLDER)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s: embeddings of removed recordings stay there: %s", library / FOLDER, error)


def write_vectors_anew(library: Path, database: Database, model: Callable[[], SLAP], *, all_of_it: bool) -> None:
    """After recordings were removed: bring the vectors up to date, without the removed ones.

    Args:
        library, database, model: as of `derive`.
        all_of_it: else removed ones may stay in it, until many are.
    """
    if all_of_it or not database.count_windows():
        remove_vectors(library)
    if database.count_windows():
        _write_vectors(library, database, model)


def _write_vectors(library: Path, database: Database, model: Callable[[], SLAP]) -> None:
    try:
        build(database, queries=lambda: _texts(library, database, model))
    except (SlapFastError, OSError) as error:
        logger.warning("%s: searches read the whole library, because its index was not written: %s", library, error)


def _texts(library: Path, database: Database, model: Callable[[], SLAP]) -> np.ndarray:
    """Embeddings of texts that people may search for."""
    tower = TextTower(library, ModelIdentity.from_meta(database.meta), model)
    return tower.encode(read_vocabulary(DEFAULT_VOCABULARY))
