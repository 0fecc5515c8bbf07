"""Memory in pieces, filled from the front as if it were one.

The tensors of a checkpoint lie a few header bytes apart. Where those bytes go to a place of their own and the tensors
straight to theirs, a whole stretch of them is one request, and nothing is copied afterwards.
"""

from collections.abc import Sequence


class Scatter:
    """A row of writable pieces and how much of it is filled."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = pieces
        self._index = 0
        self._at = 0
        self.size_bytes = sum(len(piece) for piece in pieces)
        self.filled_bytes = 0

    @property
    def left_bytes(self) -> int:
        return self.size_bytes - self.filled_bytes

    def put(self, data: bytes) -> None:
        """Fill the next bytes; at most `left_bytes` of them."""
        taken = 0
        while taken < len(data):
            room = self._pieces[self._index][self._at :]
            count = min(len(room), len(data) - taken)
            room[:count] = data if count == len(data) else data[taken : taken + count]
            taken += count
            self._at += count
            if count == len(room):
                self._index, self._at = self._index + 1, 0
        self.filled_bytes += len(data)
