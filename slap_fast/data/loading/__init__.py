"""Loading: reads, decodes and packs the batches of one rank in background threads.

Begin with loader.py. collate.py packs clips into a batch.py `Batch`; augmentation.py draws the masks; dropped_clips.py
reports clips that could not be used.
"""
