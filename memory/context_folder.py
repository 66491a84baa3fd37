"""Saved contexts and core memory on the disk: one small file each, replaced as a whole.

A file is written beside its place, flushed and renamed, so that a crash leaves the old one or the
new one. Names are checked by the ABI; a namespace may be any text and is escaped.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from pydantic import TypeAdapter, ValidationError

from llmos.memory.context_state import ContextState
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ContextPolicy
from llmos.syscalls.values import Value

VERSION = 1
_INSIDE = "in-"  # before a namespace's name in its folder's name, which then is never ".."


class SavedContext(Value):
    """A context with what it was opened with. `owner` is the client that it was saved for."""

    version: int = VERSION
    owner: str | None = None
    model: str
    budget_tokens: int
    policy: ContextPolicy
    state: ContextState


class Found(NamedTuple):
    """A saved context that was read."""

    saved: SavedContext
    bytes: int


class ContextFolder:
    """Blocking; for worker threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, namespace: str, name: str, saved: SavedContext) -> int:
        """Keep a context under a name, replacing another; returns its bytes.

        Raises: SyscallError("storage").
        """
        data = _SAVED.dump_json(saved)
        self._write(self._folder(namespace) / f"{name}.json", data)
        return len(data)

    def load(self, namespace: str, name: str) -> SavedContext:
        """A context by name.

        Raises: SyscallError("not_found"), or ("storage") for a file that is damaged or of a newer
        version.
        """
        file = self._folder(namespace) / f"{name}.json"
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            known = ", ".join(self.names(namespace)) or "none"
            raise SyscallError(
                "not_found",
                f"no context is saved as {name!r} in {namespace}; saved are {known}",
                what="saved context",
                name=name,
            ) from None
        except OSError as problem:
            raise _storage(file, problem) from problem
        try:
            saved = _SAVED.validate_json(data)
        except ValidationError as problem:
            raise SyscallError(
                "storage",
                f"{file} is no whole saved context of version {VERSION}; delete it, or read it "
                "with the llmos that wrote it",
            ) from problem
        if saved.version != VERSION:
            raise SyscallError(
                "storage",
                f"{file} is of version {saved.version}, this llmos reads {VERSION}; use a newer",
            )
        return saved

    def names(self, namespace: str) -> list[str]:
        """The names under which contexts are saved."""
        return sorted(file.stem for file in self._folder(namespace).glob("*.json"))

    def namespaces(self) -> list[str]:
        """Every namespace that something is kept for, sorted."""
        return sorted(
            unquote(folder.name[len(_INSIDE) :]) for folder in self._path.glob(f"{_INSIDE}*")
        )

    def forget(self, namespace: str, *, owner: str | None = None) -> None:
        """Delete all that is kept for a namespace, or the contexts that were saved for an owner.

        Raises: SyscallError("storage"), also for a file that is damaged, so that nobody knows whose
        it was.
        """
        folder = self._folder(namespace)
        if owner is None:
            gone = list(folder.glob("*"))
        else:
            gone = [
                folder / f"{name}.json"
                for name in self.names(namespace)
                if self.load(namespace, name).owner == owner
            ]
        try:
            for file in gone:
                file.unlink(missing_ok=True)
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        except OSError as problem:
            raise _storage(folder, problem) from problem

    def core(self, namespace: str) -> str:
        """Core memory of a namespace. Raises: SyscallError("storage")."""
        file = self._folder(namespace) / "core.txt"
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as problem:
            raise _storage(file, problem) from problem

    def write_core(self, namespace: str, text: str) -> None:
        """Replace core memory. Raises: SyscallError("storage")."""
        self._write(self._folder(namespace) / "core.txt", text.encode())

    def _folder(self, namespace: str) -> Path:
        return self._path / f"{_INSIDE}{quote(namespace, safe='')}"

    def _write(self, file: Path, data: bytes) -> None:
        draft = file.with_name(f"{file.name}.{os.getpid()}.new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as problem:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise _storage(file, problem) from problem


_SAVED = TypeAdapter(SavedContext)


def _storage(file: Path, problem: Exception) -> SyscallError:
    return SyscallError("storage", f"{file}: {problem}; nothing has changed")
