"""The measuring itself: knows nothing of what is measured."""
