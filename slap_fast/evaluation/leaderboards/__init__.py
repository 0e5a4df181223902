"""Adapters to public benchmarks of embeddings: MTEB's MAEB (mteb.py) and X-ARES (x_ares.py)."""
