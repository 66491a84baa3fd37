"""Text from a stream of token bytes: whole characters out, stop strings found.

Pure: bytes in, text out. A character whose bytes are spread over tokens comes out when its last
byte arrives. Text that may still turn into a stop string is held back until that is known.

Of several stop strings the one that is complete first ends the text; of those complete at the same
character, the one that began first. So the result does not depend on how the bytes were cut.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Incremental text of one generation.

    Bytes that are no UTF-8 become U+FFFD. After a stop string was found, everything that follows is
    ignored. Raises: ValueError for an empty stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ValueError("a stop string is empty; leave it out")
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; it and what follows it are not part of the text."""
        return self._found is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._found

    def push(self, data: bytes) -> str:
        """Take a token's bytes and return the text that is now certain."""
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back; a character that was left incomplete becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        cut = self._find_stop()
        if cut is not None:
            certain, self._held = self._held[:cut], ""
            return certain
        keep = self._held_back()
        certain, self._held = self._held[: len(self._held) - keep], self._held[-keep:] * bool(keep)
        return certain

    def _find_stop(self) -> int | None:
        """Where the text ends when a stop string is complete, which is then remembered."""
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stop
            if (start := self._held.find(stop)) >= 0
        ]
        if not matches:
            return None
        _, start, self._found = min(matches)
        return start

    def _held_back(self) -> int:
        """The length of the longest end of the text that begins a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
