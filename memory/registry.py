"""The model registry: the versions of models, what each was made from, and which one serves.

Owns one folder: `registry.sqlite`, the contents of all files in `blobs/` (each once, however many
versions have it), and for each version a folder in `versions/` of links to them, as whoever loads
it wants to see it. A version serves a slot: adapters and full weights that of their base, task
models one of their own. Nothing of a promotion is forgotten: a rollback marks it as undone, and
every decision is kept with its figures. Refuses to know how a version was trained or judged.

Safe for several threads and processes. Every change of the database is one transaction; files are
whole and durable before it, and those that nobody needs go after it, or at the next opening.
Does not protect against somebody who can write to the folder; `load` finds damage, not malice.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llmos.memory import registry_rows as rows
from llmos.memory.registry_schema import prepare
from llmos.memory.version_files import TakenIn, VersionFiles
from llmos.memory.version_uses import VersionUses
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning_results import Decision, ModelVersion

Versions = list[ModelVersion]  # `list` means the method inside the class

# Another process may hold the database for one short transaction, never longer.
_BUSY_TIMEOUT_S = 5.0
SERVING_A_BASE = frozenset({"adapter", "full"})


class Registry:
    """The versions in one folder. Methods block: those that say so on files, all on the disk."""

    def __init__(self, folder: Path) -> None:
        """Open or make the registry; one of an older llmos is brought up to date, with its files.

        Raises: SyscallError("storage").
        """
        self._folder = folder
        self._path = folder / "registry.sqlite"
        self._lock = threading.RLock()
        self._files = VersionFiles(folder)
        self._serving: dict[str, ModelVersion | None] = {}
        self._serving_as_of: int | None = None
        self.uses = VersionUses(folder / "uses")
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                # A promotion that was acknowledged survives a power cut, not only a crash.
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("PRAGMA foreign_keys = ON")
                with self._files.changing(is_waiting=self._is_older()) as is_alone:
                    if is_alone:
                        with self._transaction() as database:
                            prepare(database, self._bring_in)
                        self._sweep()
            except BaseException:
                self._database.close()
                raise

    def close(self) -> None:
        """Close the database; the registry cannot be used after."""
        with self._lock:
            self._database.close()
            self.uses.close()

    # --- versions ---------------------------------------------------------------------------------

    def add(self, version: ModelVersion) -> ModelVersion:
        """Record a version with copies of its files, and return it as stored.

        `path` is a file or a folder, which stays as it is; the stored version has its own. A
        `created_at` of 0 becomes now. `is_promoted`, `size_bytes` and `digest` are ignored: only
        `promote` promotes, and the rest is measured. Waits for the disk: seconds for a large model.
        Raises: SyscallError("invalid") when the name is taken or cannot be one, the base is
        missing, or there is nothing at `path`; ("storage"), and nothing is recorded then.
        """
        _check(version)
        with self._errors(), self._files.changing():
            self._refuse_taken(version.name)
            try:
                taken = self._take_in(version)
                stored = _stored(version, taken)
                with self._transaction() as database:
                    self._refuse_taken(version.name)
                    rows.insert(database, stored, {} if taken is None else taken.files)
            except BaseException:
                if version.path is not None:
                    self._sweep()
                raise
        return self.get(version.name)

    def list(self) -> Versions:
        """All versions, oldest first."""
        with self._lock, self._errors():
            return self._select()

    def get(self, name: str) -> ModelVersion:
        """One version. Raises: SyscallError("unknown_model") with the known names."""
        with self._lock, self._errors():
            return self._get(name)

    def lineage(self, name: str) -> Versions:
        """A version and what it was made from, as far as that is here; the version first."""
        with self._lock, self._errors():
            found, at = [self._get(name)], name
            known = {version.name: version for version in self._select()}
            while (at := known[at].parent or "") in known and known[at] not in found:
                found.append(known[at])
            return found

    def load(self, name: str) -> Path:
        """Where a version's files are, every byte of them checked; reads what it has not read yet.

        Raises: SyscallError("unknown_model"), ("invalid") for a version without files, ("storage")
        naming the first file that is damaged.
        """
        with self._errors():
            version = self.get(name)
            if version.path is None:
                raise SyscallError("invalid", f"{name} has no files to load", field="name")
            with self._lock:
                files = rows.files(self._database, name)
            self._files.check(name, files)
            return Path(version.path)

    @contextmanager
    def used(self, names: Collection[str], pid: int) -> Generator[None]:
        """Keep versions from being deleted for this block, in which a process uses them.

        Raises: SyscallError("busy"), retryable, while one is being deleted.
        """
        with ExitStack() as uses:
            for name in names:
                with self._errors():
                    self.uses.take(name, pid)
                uses.callback(self.uses.drop, name, pid)
            yield

    def pin(self, name: str, *, is_pinned: bool = True) -> ModelVersion:
        """Keep a version from being deleted, or no longer."""
        with self._transaction() as database:
            self._get(name)
            rows.pin(database, name, is_pinned)
            return self._get(name)

    def remove(self, name: str) -> int:
        """Delete a version and its past promotions; returns the bytes that this freed on the disk.

        Raises: SyscallError("unknown_model"); ("busy") while it serves, is used, is pinned, or
        others were made from it, naming who.
        """
        with self._errors(), self._files.changing(), self.uses.nobody(name):
            with self._transaction() as database:
                version = self._get(name)
                self._refuse_needed(version)
                files = rows.files(database, name)
                rows.delete(database, name)
                served = version.slot or name
                rows.decide(database, _decision("delete", served, name, name))
            return self._files.discard(name, files, self._has_content)

    # --- what serves ------------------------------------------------------------------------------

    def promote(
        self, name: str, *, slot: str | None = None, decision: Decision | None = None
    ) -> ModelVersion:
        """Have a version serve its slot; a second time in a row changes nothing.

        `slot` gives a task model another one. `decision` is what is kept of how it came to it.
        Raises: SyscallError("unknown_model"); ("invalid") for what cannot serve there.
        """
        with self._transaction() as database:
            version = self._get(name)
            slot = self.slot_of(version, slot)
            if version.slot != slot:
                rows.move(database, name, slot)
                version = self._get(name)
            if not version.is_promoted:
                before = rows.promoted(database, slot)
                rows.promote(database, slot, name)
                made = decision or _decision("promote", slot, name, before)
                rows.decide(database, made.model_copy(update={"before": before}))
            return self._get(name)

    def slot_of(self, version: ModelVersion, slot: str | None = None) -> str:
        """Where a version serves, or would. Raises: SyscallError("invalid")."""
        own = version.slot
        if own is None:
            raise SyscallError(
                "invalid",
                f"{version.name} is configured and no version, so there is nothing to promote",
                field="name",
            )
        if slot is None or slot == own:
            return own
        if version.kind in SERVING_A_BASE:
            raise SyscallError(
                "invalid", f"slot: {version.name} can only serve its base {own}", field="slot"
            )
        if version.is_promoted:
            raise SyscallError(
                "invalid", f"slot: {version.name} serves {own}; roll that back first", field="slot"
            )
        return slot

    def rollback(self, slot: str, *, reason: str = "") -> Versions:
        """Undo the last promotion of a slot: what served before serves again.

        Returns the slot's versions. Raises: SyscallError("not_found") when nothing is promoted.
        """
        with self._transaction() as database:
            current = self._promotion(slot)
            rows.undo(database, current[0])
            after = rows.promoted(database, slot)
            rows.decide(database, _decision("rollback", slot, after, current[1], reason))
            return self._select("v.slot = ?", slot)

    def promoted(self, slot: str) -> str | None:
        """The version that serves a slot, or None for the base itself."""
        with self._lock, self._errors():
            return rows.promoted(self._database, slot)

    def serving(self, slot: str) -> ModelVersion | None:
        """The version that serves a slot; None for the base itself.

        Cheap enough for every call: it reads again only what somebody has changed.
        """
        with self._lock, self._errors():
            # Differs once another connection has committed; our own changes empty the cache.
            now: int = self._database.execute("PRAGMA data_version").fetchone()[0]
            if now != self._serving_as_of:
                self._serving.clear()
                self._serving_as_of = now
            if slot not in self._serving:
                name = rows.promoted(self._database, slot)
                self._serving[slot] = None if name is None else self._get(name)
            return self._serving[slot]

    def before(self, slot: str) -> str | None:
        """What would serve a slot after a rollback; None for the base itself.

        Raises: SyscallError("not_found") when nothing is promoted.
        """
        with self._lock, self._errors():
            self._promotion(slot)
            return rows.promoted(self._database, slot, place=1)

    def refuse(self, decision: Decision) -> None:
        """Keep a decision that changed nothing: a gate has refused."""
        with self._transaction() as database:
            rows.decide(database, decision)

    def decisions(self, name: str | None = None, *, limit: int = 100) -> Sequence[Decision]:
        """What was decided, about one version or all; the newest first."""
        with self._lock, self._errors():
            return rows.decisions(self._database, name, limit)

    # --- files; under the files' lock -------------------------------------------------------------

    def _take_in(self, version: ModelVersion) -> TakenIn | None:
        if version.path is None:
            return None
        return self._files.take_in(version.name, Path(version.path))

    def _bring_in(self) -> None:
        """Take in the files of the versions of an older database, in its own transaction."""
        for version in rows.select(self._database):
            if version.path is not None and Path(version.path).exists():
                taken = self._files.take_in(version.name, Path(version.path))
                rows.replace(self._database, _stored(version, taken), taken.files)

    def _sweep(self) -> None:
        """Delete what a crash or a failure left between files and database."""
        with self._lock:
            contents = rows.contents(self._database)
            names = [version.name for version in self._select()]
        self._files.sweep(names, contents)

    def _has_content(self, sha256: str) -> bool:
        with self._lock:
            return rows.has_content(self._database, sha256)

    def _is_older(self) -> bool:
        return not self._database.execute("PRAGMA user_version").fetchone()[0]

    # --- refusals and errors ----------------------------------------------------------------------

    def _refuse_taken(self, name: str) -> None:
        with self._lock:
            taken = self._select("v.name = ?", name)
        if taken:
            raise SyscallError(
                "invalid",
                f"there is a version named {name} already; choose another name or remove it first",
                field="name",
            )

    def _promotion(self, slot: str) -> tuple[int, str]:
        current = rows.promotion(self._database, slot)
        if current is None:
            raise SyscallError(
                "not_found",
                f"nothing is promoted for {slot}, so there is nothing to roll back",
                what="promotion",
                name=slot,
            )
        return current

    def _refuse_needed(self, version: ModelVersion) -> None:
        name = version.name
        if version.is_promoted:
            raise SyscallError(
                "busy",
                f"{name} serves {version.slot}; roll back or promote another one first",
                name=name,
                slot=version.slot,
            )
        if version.is_pinned:
            raise SyscallError("busy", f"{name} is pinned; unpin it first", name=name)
        if children := rows.children(self._database, name):
            raise SyscallError(
                "busy",
                f"{', '.join(children)} {'was' if len(children) == 1 else 'were'} made from "
                f"{name}; delete what was made from it first",
                name=name,
                children=children,
            )

    def _select(self, where: str = "TRUE", *values: str) -> Versions:
        """Versions, oldest first; their paths are kept relative, so that the folder can move."""
        found = rows.select(self._database, where, *values)
        return [
            version
            if version.path is None
            else version.model_copy(update={"path": str(self._folder / version.path)})
            for version in found
        ]

    def _get(self, name: str) -> ModelVersion:
        found = self._select("v.name = ?", name)
        if found:
            return found[0]
        known = [version.name for version in self._select()]
        raise SyscallError(
            "unknown_model",
            f"the registry has no version {name}; it has: {', '.join(known) or 'none'}",
            name=name,
            known=known,
        )

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        """One transaction that takes the write lock at once, so that it cannot fail half-way."""
        with self._lock, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
                self._serving.clear()
            except BaseException:
                # SQLite has rolled back by itself after some errors, such as a full disk.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            if getattr(problem, "sqlite_errorname", "") == "SQLITE_BUSY":
                raise SyscallError(
                    "busy",
                    "another process is writing to the model registry; try again",
                    is_retryable=True,
                    path=str(self._path),
                ) from problem
            raise SyscallError(
                "storage",
                f"the model registry {self._path} cannot be used: {problem}; free space there and "
                "check its permissions, or move a damaged file away",
                path=str(self._path),
            ) from problem


def _check(version: ModelVersion) -> None:
    name = version.name
    if not name or name.startswith(".") or len(name) > 200:
        raise SyscallError(
            "invalid", f"name: {name!r} cannot name a version; begin with a letter", field="name"
        )
    if version.kind in SERVING_A_BASE and version.base is None:
        what = "adapter" if version.kind == "adapter" else "version with full weights"
        raise SyscallError("invalid", f"the {what} {name} names no base", field="base")


def _slot(version: ModelVersion) -> str | None:
    """Where a version serves that does not say it itself."""
    match version.kind:
        case "adapter" | "full":
            return version.base
        case "task" | "prompt":
            objective = version.card.get("objective")
            return objective if isinstance(objective, str) else version.name
        case "model" | "embedding":
            return None


def _stored(version: ModelVersion, taken: TakenIn | None) -> ModelVersion:
    """A version as it is kept: with what was measured of its files, and where it would serve."""
    told = {
        "created_at": version.created_at or time.time(),
        "slot": version.slot or _slot(version),
        "is_promoted": False,
    }
    if taken is not None:
        told |= {"path": taken.path, "size_bytes": taken.size_bytes, "digest": taken.digest}
    return version.model_copy(update=told)


def _decision(
    action: str, slot: str, name: str | None, before: str | None, reason: str = ""
) -> Decision:
    return Decision.model_validate(
        {
            "action": action,
            "slot": slot,
            "name": name,
            "before": before,
            "is_allowed": True,
            "reason": reason,
            "at": time.time(),
        }
    )
