"""Dataset preparation: converts captioned audio of any kind to a dataset folder (shards, index, tokenizer).

Begin with `pipeline.prepare`. In the order of the data:

- source.py: the `Source` protocol and what it yields, `ClipItem` or `Rejection`; source_detection.py opens a path as
  one of folder_source.py, tar_source.py, manifest.py, layouts.py (AudioCaps, Clotho), wavcaps.py, macs.py,
  labeled_layouts.py (datasets with classes, captioned by label_captions.py), a folder of tables (table_folders.py), or
  hub_source.py, which streams from the Hugging Face hub (hub_repository.py).
- exclusions.py leaves out listed clips; zip_files.py finds and reads audio inside zips.
- table_rows.py and csv_rows.py read tables; table_source.py merges rows of the same audio; table_audio.py, segments.py,
  sidecars.py and file_search.py find audio and captions.
- clip_encoder.py converts one clip to FLAC in a worker process (parallel_map.py).
- state.py makes a run resumable; dataset_writer.py writes the index and `dataset.json` last.
- parts.py cuts a source into parts for several machines; merge_parts.py joins what they wrote.
- reindex.py indexes existing WebDataset tars without converting them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slap_fast.data.prepare.dataset_writer import PrepareReport
    from slap_fast.data.prepare.merge_parts import merge
    from slap_fast.data.prepare.parts import Part
    from slap_fast.data.prepare.pipeline import prepare
    from slap_fast.data.prepare.source import GeneratedSource, Source
    from slap_fast.data.prepare.source_detection import open_source

__all__ = ["GeneratedSource", "Part", "PrepareReport", "Source", "merge", "open_source", "prepare"]

_MODULES = {
    "GeneratedSource": "source",
    "Part": "parts",
    "PrepareReport": "dataset_writer",
    "Source": "source",
    "merge": "merge_parts",
    "open_source": "source_detection",
    "prepare": "pipeline",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: slap_fast.data.labeled uses modules of this package, and layouts here use that one.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
