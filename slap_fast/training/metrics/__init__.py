"""Metrics of a run: losses, gradient norms, throughput, and the log that records them."""
