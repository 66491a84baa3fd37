"""Saved KV below the device: in host memory, and under that on disk.

An idle sequence that the device has no room for, and a generation that had to give way, are kept
here while that is cheaper than computing them again. Each tier has a budget in bytes. What must go
is what is worth least a byte: the seconds it would take to compute again, by the seconds until
somebody is expected back for it. From host memory it goes to disk, from disk it is dropped.

States are whole sequences: two that share a prefix hold it twice, and are accounted so. A state
that is the beginning of a newer one is dropped for it. A device that cannot cut what it restores
(`whole_only`) finds only states that a prompt begins with as a whole.

Knows states as opaque bytes and refuses to know drivers. One thread uses it (the device's engine
thread); files are written on a thread of its own, so that the device never waits for a disk.

Source: keep, swap or discard by predicted cost follows InferCept (ICML'24), the expected time of
return Continuum (arXiv 2511.02230) and KVFlow (arXiv 2507.07400).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from llmos.memory.kv_disk import Disk
from llmos.memory.kv_folder import Kept, KVFolder
from llmos.memory.kv_index import Index
from llmos.memory.kv_owner import Owner, is_passing
from llmos.memory.returns import Returns
from llmos.syscalls.errors import KernelPanic

# States on their way to disk may take this much beside the host budget; more are dropped.
WRITING_BYTES = 256 * 2**20
# What is shorter is computed again sooner than it is looked after.
WORTH_KEEPING_TOKENS = 32
# An orderly stop may take this long for writing.
STOP_S = 5.0


@dataclass(slots=True, eq=False)
class Stowed:
    """A saved sequence. It is in host memory (`state`), on disk (`file`), or in both."""

    number: int
    owner: Owner
    tokens: tuple[int, ...]
    used_s: float
    state: bytes | None = None
    file: Kept | None = None
    awaited_by: int | None = None  # a generation that goes on from here


class _Worth(NamedTuple):
    """What eviction goes by: the least goes first, and of equals the one used longest ago."""

    per_byte: float
    used_s: float


class Found(NamedTuple):
    """A saved sequence that begins as a prompt does, and how far."""

    stowed: Stowed
    tokens: int


class Tiers:
    """The saved sequences of one device.

    `now` is a monotonic clock in seconds. `root` is where files go, in a folder for each kind of
    state; None: nothing goes to disk. `recompute_s` tells how long a prompt of so many tokens
    takes.
    """

    def __init__(
        self,
        *,
        host_bytes: int,
        disk_bytes: int = 0,
        root: Path | None = None,
        now: Callable[[], float] = time.monotonic,
        recompute_s: Callable[[int], float] = lambda tokens: tokens / 1000,
        whole_only: bool = False,
    ) -> None:
        self.returns = Returns(now)
        self.recompute_s = recompute_s
        self.whole_only = whole_only
        self._budget_bytes = host_bytes
        self._disk_budget_bytes = disk_bytes if root is not None else 0
        self._root = root
        self._fingerprint: str | None = None
        self._disk: Disk | None = None
        self._stowed: dict[int, Stowed] = {}
        self._index = Index()  # of `Stowed.number`s
        self._numbers = itertools.count()

    def open(self, fingerprint: str) -> None:
        """Make ready for a device's states; those of another kind are forgotten.

        States of the same kind outlive the device: a device that was reopened finds them. Files
        that a kernel could not delete when it was killed, because their domain ended with it, are
        deleted here.
        """
        if fingerprint == self._fingerprint:
            return
        for stowed in list(self._stowed.values()):
            self._remove(stowed, with_file=False)
        self._fingerprint = fingerprint
        if self._root is None or not self._disk_budget_bytes:
            return
        folder = KVFolder(self._root / fingerprint)
        folder.delete_others()
        self._disk = Disk(folder)
        now, wall = self.returns.now(), time.time()
        for file in folder.scan():
            if is_passing(file.owner.domain):
                folder.delete(file)
                continue
            used_s = now - max(0.0, wall - file.used_at)
            self._add(
                replace(_new(next(self._numbers), file.owner, file.tokens, used_s), file=file)
            )
        self._fit_disk(0, worth=_Worth(float("inf"), self.returns.now()))

    # --- in ---

    def wants(self, owner: Owner, tokens: Sequence[int], *, lost_tokens: int) -> bool:
        """Whether a sequence, of which so much is nowhere else on the device, should be saved.

        What is here already is not wanted again, and counts as used.
        """
        if not self._budget_bytes or lost_tokens < WORTH_KEEPING_TOKENS:
            return False
        holders = self._holders(owner, tokens)
        for stowed in holders:
            stowed.used_s = max(stowed.used_s, self.returns.now())
        return not holders

    def stow(
        self,
        owner: Owner,
        tokens: Sequence[int],
        state: bytes,
        *,
        used_s: float | None = None,
        awaited_by: int | None = None,
    ) -> bool:
        """Keep a state in host memory; False when everything there is worth more."""
        self._collect()
        used = self.returns.now() if used_s is None else used_s
        stowed = _new(next(self._numbers), owner, tuple(tokens), used)
        stowed.state, stowed.awaited_by = state, awaited_by
        if not self._make_room(stowed):
            return False
        self._supersede(stowed)
        self._add(stowed)
        return True

    # --- out ---

    def find(self, owner: Owner, tokens: Sequence[int], limit_tokens: int) -> Found | None:
        """The saved sequence with the longest prefix of these tokens, at most `limit_tokens`."""
        self._collect()
        look = self._index.match_whole if self.whole_only else self._index.match
        match = look(owner, tokens, limit_tokens)
        if match.tokens < WORTH_KEEPING_TOKENS:
            return None
        holders = [self._stowed[number] for number in match.holders]
        best = min(holders, key=lambda s: (s.state is None, len(s.tokens), s.number))
        return Found(best, match.tokens)

    def take(self, found: Found) -> bytes | None:
        """The state of a saved sequence; None when it has gone since it was found.

        None too, after a warning, when its file is damaged. One that is taken as a whole moves to
        the device: its owner goes on from there, and leaves a longer one. Its file stays, until a
        longer one takes its place.
        """
        stowed = found.stowed
        if stowed.number not in self._stowed:
            return None  # what came since was worth more
        state = stowed.state
        if state is None:
            assert self._disk is not None and stowed.file is not None
            state = self._disk.read(stowed.file)
            if state is None:
                self._remove(stowed)
                return None
        if found.tokens == len(stowed.tokens):
            stowed.awaited_by = None
            if stowed.file is None:
                self._remove(stowed)
            else:
                stowed.state = None
        stowed.used_s = self.returns.now()
        return state

    def fetch_s(self, found: Found) -> float:
        """Seconds until the state of a saved sequence is in host memory; 0 where it is."""
        file = found.stowed.file
        if found.stowed.state is not None or file is None or self._disk is None:
            return 0.0
        return self._disk.read_s(file.file_bytes)

    def refuse(self, found: Found) -> None:
        """Forget a saved sequence that was taken and that the device did not accept."""
        if found.stowed.number in self._stowed:
            self._remove(found.stowed)

    def release(self, awaited_by: int) -> None:
        """Forget what was kept for a generation that will not go on."""
        for stowed in [s for s in self._stowed.values() if s.awaited_by == awaited_by]:
            self._remove(stowed)

    def end_domain(self, domain: str) -> None:
        """Forget what nobody can ask for any more, because the domain has ended."""
        for stowed in list(self._stowed.values()):
            if stowed.owner.domain == domain and stowed.awaited_by is None:
                self._remove(stowed)

    # --- the end ---

    def persist(self, owner: Owner, tokens: Sequence[int], state: bytes, *, until_s: float) -> bool:
        """Write a state for the next kernel, unless it has it or time is up; at an orderly stop."""
        if self._disk is None or time.monotonic() >= until_s:
            return False
        if any(stowed.file is not None for stowed in self._holders(owner, tokens)):
            return True
        self._stop_writing()
        stowed = _new(next(self._numbers), owner, tuple(tokens), self.returns.now())
        stowed.state = state
        if not self._fit_disk(len(state), worth=self._worth(stowed)):
            return False
        stowed.state, stowed.file = None, self._disk.write(owner, stowed.tokens, state)
        if stowed.file is None:
            return False
        self._supersede(stowed)
        self._add(stowed)
        return True

    def lasting(self) -> list[Stowed]:
        """What is only in host memory and could serve the next kernel, the most worth first."""
        found = [
            s for s in self._stowed.values() if s.file is None and not is_passing(s.owner.domain)
        ]
        return sorted(found, key=self._worth, reverse=True)

    def close(self) -> None:
        """Wait for the writer, and delete the files that nobody can come back for."""
        self._stop_writing()
        for stowed in list(self._stowed.values()):
            self._remove(stowed, with_file=is_passing(stowed.owner.domain))
        self._fingerprint = None

    # --- figures ---

    @property
    def host_bytes(self) -> int:
        """Bytes of states in host memory, those on their way to disk included."""
        return self._staying_bytes + self._writing_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the files."""
        return sum(s.file.file_bytes for s in self._stowed.values() if s.file is not None)

    def check(self) -> None:
        """Raises: KernelPanic when the table and the trees disagree or a budget is exceeded."""
        self._index.check({number: stowed.owner for number, stowed in self._stowed.items()})
        for stowed in self._stowed.values():
            if stowed.state is None and stowed.file is None:
                raise KernelPanic(f"the saved sequence {stowed.number} is nowhere")
        if self._staying_bytes > self._budget_bytes:
            raise KernelPanic("saved sequences take more than the host budget")
        if self._writing_bytes > WRITING_BYTES:
            raise KernelPanic("too much is on its way to disk")
        if self.disk_bytes > self._disk_budget_bytes:
            raise KernelPanic("saved sequences take more than the disk budget")

    # --- room ---

    @property
    def _writing_bytes(self) -> int:
        return sum(self._writing.values())

    @property
    def _staying_bytes(self) -> int:
        writing = self._writing
        return sum(_state_bytes(s) for n, s in self._stowed.items() if n not in writing)

    def _worth(self, stowed: Stowed) -> _Worth:
        """Seconds of computing that a byte spares, by the seconds until it is expected to."""
        if stowed.awaited_by is not None:
            return _Worth(float("inf"), stowed.used_s)
        number = stowed.number
        # What another begins with too is there only for a device that can cut the other.
        can_share = number in self._index and not self.whole_only
        tokens = self._index.only_here(number) if can_share else len(stowed.tokens)
        size = _state_bytes(stowed) or _file_bytes(stowed)
        remaining_s = self.returns.remaining_s(stowed.owner.program, since_s=stowed.used_s)
        spared_s = self.recompute_s(tokens) * stowed.owner.weight
        return _Worth(spared_s / remaining_s / max(1, size), stowed.used_s)

    def _make_room(self, stowed: Stowed) -> bool:
        """Take what is worth less than this out of host memory until it fits, or nothing at all."""
        assert stowed.state is not None
        excess = self._staying_bytes + len(stowed.state) - self._budget_bytes
        if excess <= 0:
            return True
        worth = self._worth(stowed)
        writing = self._writing
        staying = [s for n, s in self._stowed.items() if s.state and n not in writing]
        going: list[Stowed] = []
        for one in sorted(staying, key=self._worth):
            if excess <= 0:
                break
            if self._worth(one) >= worth:
                return False
            going.append(one)
            excess -= _state_bytes(one)
        if excess > 0:
            return False
        for one in going:
            self._leave_host(one)
        return True

    def _leave_host(self, stowed: Stowed) -> None:
        """Move a state to disk, or drop it where that is not worth it."""
        assert stowed.state is not None
        size = len(stowed.state)
        if stowed.file is not None:
            stowed.state = None
        elif (
            self._disk is not None
            and self._writing_bytes + size <= WRITING_BYTES
            and self.recompute_s(len(stowed.tokens)) > self._disk.read_s(size)
            and self._fit_disk(size, worth=self._worth(stowed))
        ):
            self._disk.start(stowed.number, stowed.owner, stowed.tokens, stowed.state)
        else:
            self._remove(stowed)

    def _fit_disk(self, size: int, *, worth: _Worth) -> bool:
        """Delete what is worth least on disk, and less than this, until so much more fits."""
        coming = sum(_padded(state_bytes) for state_bytes in self._writing.values())
        while self.disk_bytes + coming + _padded(size) > self._disk_budget_bytes:
            on_disk = [s for s in self._stowed.values() if s.file is not None]
            victim = min(on_disk, key=self._worth, default=None)
            if victim is None or self._worth(victim) >= worth:
                return False
            if victim.state is None:
                self._remove(victim)
            else:
                self._delete_file(victim)
        return True

    @property
    def _writing(self) -> dict[int, int]:
        return {} if self._disk is None else self._disk.writing

    def _collect(self) -> None:
        """Take note of files that have been written."""
        if self._disk is None:
            return
        for number, file in self._disk.written():
            stowed = self._stowed.get(number)
            if stowed is None:
                if file is not None:
                    self._disk.delete(file)
            elif file is None:
                self._remove(stowed)
            else:
                stowed.state, stowed.file = None, file

    def _stop_writing(self) -> None:
        if self._disk is not None:
            self._disk.stop()
        self._collect()

    # --- the table ---

    def _holders(self, owner: Owner, tokens: Sequence[int]) -> list[Stowed]:
        """The saved sequences that begin with all of these tokens, and can be cut to them."""
        holders = [self._stowed[number] for number in self._index.holders(owner, tokens)]
        return [s for s in holders if not self.whole_only or len(s.tokens) == len(tokens)]

    def _supersede(self, newer: Stowed) -> None:
        """Drop what is the beginning of a newer state, unless somebody waits for just that."""
        for number in self._index.within(newer.owner, newer.tokens):
            older = self._stowed[number]
            if older.awaited_by is None and (older.file is None or newer.file is not None):
                self._remove(older)
            elif older.awaited_by is None:
                older.state = None

    def _add(self, stowed: Stowed) -> None:
        self._stowed[stowed.number] = stowed
        self._index.add(stowed.number, stowed.owner, stowed.tokens)

    def _remove(self, stowed: Stowed, *, with_file: bool = True) -> None:
        del self._stowed[stowed.number]
        self._index.remove(stowed.number)
        if with_file:
            self._delete_file(stowed)

    def _delete_file(self, stowed: Stowed) -> None:
        if stowed.file is not None:
            assert self._disk is not None
            self._disk.delete(stowed.file)
            stowed.file = None


def share_of_memory() -> int:
    """Bytes of host memory that saved KV may take where nothing else is said: a tenth of all."""
    import psutil

    return psutil.virtual_memory().total // 10


def _new(number: int, owner: Owner, tokens: tuple[int, ...], used_s: float) -> Stowed:
    return Stowed(number, owner, tokens, used_s)


def _state_bytes(stowed: Stowed) -> int:
    return 0 if stowed.state is None else len(stowed.state)


def _file_bytes(stowed: Stowed) -> int:
    return 0 if stowed.file is None else stowed.file.file_bytes


def _padded(state_bytes: int) -> int:
    """About what a state takes as a file, with its head and tokens."""
    return state_bytes + state_bytes // 100 + 65_536 if state_bytes else 0
