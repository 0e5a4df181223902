"""Indexing: finds recordings, embeds what is new or changed, and keeps a library equal to the files on disk."""
