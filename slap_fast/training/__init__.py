"""Training: model, losses, step, DeepSpeed engine, EMA teacher, checkpoints and metrics."""
