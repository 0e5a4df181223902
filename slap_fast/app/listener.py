"""Listener: the one model of the page, which one thread uses at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from slap_fast.app.errors import PageError
from slap_fast.library.library import Library

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP


class Listener:
    """Embeds and captions sounds for the page. Requests wait for each other, so that memory is that of one."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._long_lock = threading.Lock()

    @contextmanager
    def model(self) -> Iterator[SLAP]:
        """The model of the library, for the caller alone; loaded at the first use.

        Raises:
            PageError: it cannot be loaded.
        """
        with self._lock:
            try:
                model = self._library.model
            except (OSError, ValueError) as error:
                raise PageError(
                    f"the model of the library cannot be loaded ({error}); start the app with --model MODEL"
                ) from error
            yield model

    @contextmanager
    def locating(self) -> Iterator[SLAP]:
        """The model, to look through a recording: one caller at a time, but beside `model`, as it may take an hour."""
        with self._long_lock:
            with self.model() as model:
                pass
            yield model

    def embed(self, samples: np.ndarray) -> np.ndarray:
        """`[D]` unit-length embedding of `[S]` samples at the model's rate."""
        with self.model() as model:
            return model.encode_audio([samples], sampling_rate=model.config.mel.sample_rate).numpy()[0]

    def columns(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centers in seconds `[C]`, and unit-length embeddings `[C, D]`, of the columns of patches of samples."""
        with self.model() as model:
            mel = model.config.mel
            (columns,) = model.encode_audio([samples], sampling_rate=mel.sample_rate, dense=True)
            seconds = model.config.audio.patch_frames * mel.hop_length / mel.sample_rate
        return (np.arange(len(columns)) + 0.5) * seconds, columns.numpy()

    def caption(self, samples: np.ndarray) -> str:
        """
        Raises:
            ModelError: the model cannot caption.
        """
        with self.model() as model:
            return model.caption([samples], sampling_rate=model.config.mel.sample_rate)[0]

    def check_captions(self) -> None:
        """
        Raises:
            ModelError: the model cannot caption, because it was trained without captions.
        """
        with self.model() as model:
            model.require("caption_decoder")
