"""Checkpoints: save, resume, check, export. Begin with `manager.CheckpointManager`."""
