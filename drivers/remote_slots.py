"""Which of a server's slots a session should use, so that it finds its prefix computed there.

A session gets the slot it had last while that is free, else the one that was free the longest:
what is in it is the least likely to be asked for again. Other clients of the server are not seen.
"""

from __future__ import annotations

from collections import OrderedDict


class Slots:
    def __init__(self, count: int) -> None:
        self._free: OrderedDict[int, None] = OrderedDict((slot, None) for slot in range(count))
        self._session: dict[int, str] = {}

    def take(self, session: str) -> int | None:
        """A free slot for a session; None when none is free and the server must choose."""
        if not self._free:
            return None
        own = (slot for slot in self._free if session and self._session.get(slot) == session)
        slot = next(own, None)
        if slot is None:
            slot = next(iter(self._free))
        del self._free[slot]
        self._session[slot] = session
        return slot

    def give_back(self, slot: int) -> None:
        """The session's request is over; what it computed stays in the slot."""
        self._free[slot] = None
