"""Labeled audio: classification and tagging datasets as published, class folders, tables and prepared datasets.

Begin with opening.py (`open_labeled`); labeled_set.py has what it returns. tables.py, folders.py, tagging.py (FSD50K,
AudioSet) and stored.py (audio inside Parquet tables and prepared datasets) read the layouts.
"""

from slap_fast.data.labeled.labeled_set import LabeledFile, LabeledSet, LabelError
from slap_fast.data.labeled.opening import open_labeled

__all__ = ["LabelError", "LabeledFile", "LabeledSet", "open_labeled"]
