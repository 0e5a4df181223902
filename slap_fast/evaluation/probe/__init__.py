"""Probes: how well a linear or a nearest-neighbor classifier separates classes by frozen audio embeddings.

splits.py chooses the training and test clips, embeddings.py computes and caches the embeddings, classifiers.py fits,
scoring.py puts them together (`probe`), and plots.py draws the result. frames.py probes dense features for events.
"""
