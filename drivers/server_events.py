"""Server-sent events: the data of each, out of a stream of bytes.

Lines end where the format says and nowhere else. A reader of text lines would also split at
characters such as U+2028, which JSON may hold unescaped.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventReader:
    """Give it bytes as they come; it gives back the data of the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def push(self, chunk: bytes) -> list[str]:
        """Raises: ValueError when an event grows without end."""
        pending = self._rest + chunk
        # A carriage return at the end may be half of a line's end.
        held = b"\r" if pending.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(pending.removesuffix(held))
        self._rest = rest + held
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise ValueError(f"an event is larger than {_MAX_EVENT_BYTES} bytes")
        return [text for line in lines if (text := self._take(line)) is not None]

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data).decode("utf-8", errors="replace") if data else None
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
