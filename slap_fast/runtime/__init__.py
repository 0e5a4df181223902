"""Process-level utilities: CPU settings, reusable buffers, durable file writes, progress bars."""
