"""Desk: what all parts of the page share, for one library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slap_fast.app.listener import Listener
from slap_fast.app.located import LocatedFiles
from slap_fast.app.queries import Finder, Query
from slap_fast.app.recent import Recent
from slap_fast.app.sounds import Sounds
from slap_fast.library.database import Database
from slap_fast.library.library import Library

_KEPT_QUERIES = 512
_KEPT_LOCATED = 32


@dataclass(frozen=True)
class Desk:
    """What the tabs and the routes of the page share.

    Attributes:
        library: which is searched; may be written by an indexer meanwhile.
        database: of the library, for reading.
        listener: the model.
        finder: searches.
        sounds: what may be played.
        queries: of the last searches, for the curves of their results.
        located: of the last recordings that were looked through.
    """

    library: Library
    database: Database
    listener: Listener
    finder: Finder
    sounds: Sounds
    queries: Recent[Query]
    located: Recent[LocatedFiles]

    @classmethod
    def of(cls, library: Library, uploads: Path) -> Desk:
        """
        Args:
            library: open.
            uploads: folder that holds uploaded files, and nothing else.
        """
        database = Database(library.path)
        listener = Listener(library)
        return cls(
            library,
            database,
            listener,
            Finder(library, database, listener),
            Sounds(database, uploads),
            Recent(_KEPT_QUERIES),
            Recent(_KEPT_LOCATED),
        )
