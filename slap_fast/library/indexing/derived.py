"""What is derived from a library after an update, so that searches start fast; all of it can be deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.errors import MissingExtraError, ModelError
from slap_fast.library.text_tower import export_text_tower, has_text_tower

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)


def derive(library: Path, model: Callable[[], SLAP]) -> None:
    """Write what is missing. Without it, searches give the same results, but later: so no failure is an error here.

    Args:
        library: folder of the library; the caller holds its lock.
        model: loads the model of the library.
    """
    try:
        if not has_text_tower(library):
            export_text_tower(model(), library)
    except (MissingExtraError, ModelError, OSError) as error:
        logger.warning("%s: searches load the whole model, because its text tower was not written: %s", library, error)
