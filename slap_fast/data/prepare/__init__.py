"""From captioned audio of any kind to a dataset folder: sources, conversion, shards, index."""

from slap_fast.data.prepare.dataset_writer import PrepareReport
from slap_fast.data.prepare.pipeline import prepare
from slap_fast.data.prepare.sources import ClipSource, Source, open_source

__all__ = ["ClipSource", "PrepareReport", "Source", "open_source", "prepare"]
