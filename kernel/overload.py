"""What a caller is told when more is asked of a device than it can serve in time.

Two bounds keep a crowd from growing without end: a queue that is full takes no more, and a
generation whose deadline has passed is dropped, because nobody waits for it. Both say what to do;
when to come back is learned from how often generations end.
"""

from __future__ import annotations

from llmos.syscalls.errors import SyscallError

# Weight of the last time between two ends in the average.
_LEARN = 0.1
# Of those that wait, the share that must have ended before it is worth asking again.
_COME_BACK_SHARE = 1 / 20
# Between two ends, as long as none was seen.
_FIRST_GUESS_S = 1.0
_LEAST_S = 0.1


class Ends:
    """How often the generations of one device end. One thread counts, any may ask."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._between_s: float | None = None

    def count(self, now_s: float, *, is_last: bool) -> None:
        """A generation has ended; `is_last` when none is left.

        With nobody left, the time to the next end says nothing of the device.
        """
        last_s, self._last_s = self._last_s, None if is_last else now_s
        if last_s is not None:
            passed_s, average_s = now_s - last_s, self._between_s
            if average_s is None:
                self._between_s = passed_s
            else:
                self._between_s = average_s + _LEARN * (passed_s - average_s)

    def retry_after_s(self, waiting: int) -> float:
        """When a twentieth of what waits will have ended, at the rate of the last ones."""
        between_s = self._between_s or _FIRST_GUESS_S
        return max(_LEAST_S, round(max(1.0, waiting * _COME_BACK_SHARE) * between_s, 1))


def queue_full(device: str, *, waiting: int, limit: int, ends: Ends) -> SyscallError:
    """The error of a generation that a device's queue has no room for."""
    after_s = ends.retry_after_s(waiting)
    return SyscallError(
        "busy",
        f"{waiting} generations wait for device {device}; retry in {after_s:.1f} s",
        is_retryable=True,
        device=device,
        limit=limit,
        retry_after_s=after_s,
    )


def overdue(device: str, *, waited_s: float, tokens: int) -> SyscallError:
    """The error of a generation whose deadline has passed, with the tokens that it had made."""
    return SyscallError(
        "timeout",
        f"nobody waits for this generation after {waited_s:.1f} s on device {device}: its deadline "
        "has passed; ask for fewer tokens, allow more time, or come back when fewer wait",
        is_retryable=True,
        device=device,
        tokens=tokens,
    )
