"""Comparison of training runs: run.py reads an output folder, table.py compares, plots.py draws."""
