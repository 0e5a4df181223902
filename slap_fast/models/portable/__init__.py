"""The towers of SLAP in plain PyTorch operations for one clip or padded texts, for export to other runtimes."""
