"""Saved KV on disk: one file a sequence, that a later kernel can find and trust.

Owns the folder and the form of its files. A file is written beside its place, flushed, and then
named, so that a crash leaves a whole file or none; checksums cover both its head (whose tokens, of
which adapter and domain) and its state. What does not check is deleted with a warning: it can be
computed again.

Files hold what was said in numbers that can be read back: the folder is its owner's alone (mode
0700), and nothing is encrypted. One kernel at a time uses a folder, because its home is one
kernel's; methods are for one thread at a time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from llmos.memory.kv_owner import Owner

log = logging.getLogger("llmos.memory")

_MAGIC = b"llmosKVF"
_VERSION = 1
_FRONT = struct.Struct("<8sII16s")  # magic, version, bytes of the head, checksum of the head
_SUFFIX, _UNFINISHED = ".kv", ".part"
_MOST_HEAD_BYTES = 1 << 24


class _Head(NamedTuple):
    """The head of a file, as JSON; the tokens follow it, and then the state."""

    adapter: str | None
    domain: str
    public_tokens: int
    tokens: int
    state_bytes: int
    state_sum: str
    used_at: float  # wall clock


_HEAD = TypeAdapter(_Head)


class Kept(NamedTuple):
    """A file of saved KV."""

    path: Path
    owner: Owner
    tokens: tuple[int, ...]
    file_bytes: int
    used_at: float


class Damaged(Exception):
    """A file is not what it should be; the message says in which way."""


class KVFolder:
    """The files of one model, driver and KV layout, under `root`; made when first written to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._next = 0

    def delete_others(self) -> None:
        """Delete the folders beside this one: what is in them no device here can read any more."""
        if not self._root.parent.is_dir():
            return
        for other in self._root.parent.iterdir():
            if other != self._root:
                log.warning("saved KV %s is of another model or layout and is deleted", other)
                shutil.rmtree(other, ignore_errors=True)

    def scan(self) -> list[Kept]:
        """The whole files that are there; others are deleted."""
        if not self._root.is_dir():
            return []
        return list(self._scan())

    def write(self, owner: Owner, tokens: tuple[int, ...], state: bytes) -> Kept:
        """Write a file. Raises: OSError; nothing is left then."""
        used_at = time.time()
        body = np.asarray(tokens, "<i4").tobytes()
        head = _Head(
            owner.adapter,
            owner.domain,
            owner.public_tokens,
            len(tokens),
            len(state),
            _sum(state).hex(),
            used_at,
        )
        front = json.dumps(head._asdict()).encode() + b"\n" + body
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._new_path()
        unfinished = path.with_suffix(_UNFINISHED)
        try:
            with unfinished.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(_FRONT.pack(_MAGIC, _VERSION, len(front), _sum(front)))
                file.write(front)
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        return Kept(path, owner, tokens, _FRONT.size + len(front) + len(state), used_at)

    def read(self, kept: Kept) -> bytes | None:
        """The state in a file; None, after a warning, when it is damaged or gone."""
        try:
            with kept.path.open("rb") as file:
                head, _ = _read_head(file.read(_FRONT.size), file.read)
                state = file.read()
            if len(state) != head.state_bytes or _sum(state).hex() != head.state_sum:
                raise Damaged("its state does not match its checksum")
        except (OSError, Damaged) as problem:
            self._give_up(kept.path, problem)
            return None
        return state

    def delete(self, kept: Kept) -> None:
        """Delete a file, if it is there."""
        _unlink(kept.path)

    def _scan(self) -> Iterator[Kept]:
        for path in sorted(self._root.iterdir()):
            if path.suffix == _UNFINISHED:
                _unlink(path)
            elif path.suffix == _SUFFIX:
                try:
                    yield _kept(path)
                except (OSError, Damaged) as problem:
                    self._give_up(path, problem)

    def _give_up(self, path: Path, problem: Exception) -> None:
        log.warning("saved KV %s is not used and is deleted: %s", path, problem)
        _unlink(path)

    def _new_path(self) -> Path:
        while True:
            path = self._root / f"{self._next:08d}{_SUFFIX}"
            self._next += 1
            if not path.exists():
                return path


def _kept(path: Path) -> Kept:
    with path.open("rb") as file:
        head, tokens = _read_head(file.read(_FRONT.size), file.read)
        start = file.tell()
        size = os.fstat(file.fileno()).st_size
    if size != start + head.state_bytes:
        raise Damaged(f"it is cut: {size} of {start + head.state_bytes} bytes are there")
    owner = Owner(head.adapter, head.domain, head.public_tokens)
    return Kept(path, owner, tokens, size, head.used_at)


def _read_head(front: bytes, read: Callable[[int], bytes]) -> tuple[_Head, tuple[int, ...]]:
    """The head and the tokens of a file. Raises: Damaged."""
    if len(front) < _FRONT.size:
        raise Damaged("it is shorter than its head")
    magic, version, size, checksum = _FRONT.unpack(front)
    if magic != _MAGIC or version != _VERSION:
        raise Damaged("it is of another form or version")
    data = read(size) if size <= _MOST_HEAD_BYTES else b""
    if len(data) != size or _sum(data) != checksum:
        raise Damaged("its head does not match its checksum")
    text, _, body = data.partition(b"\n")
    try:
        head = _HEAD.validate_json(text)
    except ValidationError as problem:
        raise Damaged(f"its head cannot be read: {problem}") from problem
    tokens = tuple(int(token) for token in np.frombuffer(body, "<i4"))
    if len(tokens) != head.tokens:
        raise Damaged("its head and its tokens disagree")
    return head, tokens


def _sum(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as problem:
        log.warning("%s cannot be deleted: %s", path, problem)
