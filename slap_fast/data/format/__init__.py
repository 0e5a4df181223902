"""Dataset format: WebDataset tars, an index, clip durations and `dataset.json`, in a folder or at a URL.

Begin with index.py (`ClipIndex` opens a dataset and reads clips). shard_files.py and remote.py read the tars;
shard_writer.py writes them; dataset_files.py defines file names and the index record.
"""
