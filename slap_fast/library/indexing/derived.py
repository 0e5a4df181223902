"""What is derived from a library after an update, so that searches start fast; all of it can be deleted."""

from __future__ import annotations

import logging
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
    try:
        build(database, queries=lambda: _texts(library, database, model))
    except (SlapFastError, OSError) as error:
        logger.warning("%s: searches read the whole library, because its index was not written: %s", library, error)


def _texts(library: Path, database: Database, model: Callable[[], SLAP]) -> np.ndarray:
    """Embeddings of texts that people may search for."""
    tower = TextTower(library, ModelIdentity.from_meta(database.meta), model)
    return tower.encode(read_vocabulary(DEFAULT_VOCABULARY))
