"""SLAP as classes of Hugging Face transformers: `SlapConfig`, `SlapModel`, `SlapProcessor`, and their Auto classes."""
