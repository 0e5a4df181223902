"""Data: from captioned audio files to packed training batches.

Offline, `prepare/` converts any source to a dataset folder, whose files are defined in `format/`. Online, `sampling/`
assigns clips to steps and ranks, `decoding/` decodes them, and `loading/` packs them into batches in the background.
Begin with `loading/loader.py` or `prepare/pipeline.py`.
"""
