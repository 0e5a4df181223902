"""Growing cache of the keys and values of tokens in one layer of the caption decoder."""

from __future__ import annotations

from torch import Tensor

_FIRST_CAPACITY = 32  # tokens; doubled when they are used up


class TokenCache:
    """Rotated keys, and values, of one layer: `[R, heads, capacity, D]` each, of which `length` tokens are filled."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds `[R, heads, D]` of one token, and returns views `[R, heads, length, D]` of all tokens."""
        self._keys, self._values = (
            _with_room(self._keys, keys, self.length),
            _with_room(self._values, values, self.length),
        )
        self._keys[:, :, self.length], self._values[:, :, self.length] = keys, values
        self.length += 1
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def select(self, rows: Tensor) -> None:
        """Keeps the rows `[R]` int64, in this order; a row may be repeated."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)


def _with_room(cache: Tensor | None, token: Tensor, length: int) -> Tensor:
    if cache is not None and length < cache.shape[2]:
        return cache
    rows, heads, width = token.shape
    larger = token.new_empty(rows, heads, _FIRST_CAPACITY if cache is None else 2 * length, width)
    if cache is not None:
        larger[:, :, :length] = cache
    return larger
