"""Typed configuration: recipe and model dataclasses, and the loader of recipes."""
