"""Recently made things by a random key: what the page refers to later, without a client being able to name others."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The last `limit` values, each by a key that cannot be guessed. Safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, value: Value) -> str:
        """Store a value; returns its key."""
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return key

    def get(self, key: str) -> Value | None:
        """The value, which counts as used now; None if it was never stored, or too long ago."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)
