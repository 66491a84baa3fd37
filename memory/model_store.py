"""The model store: models on this machine, whole, checked and known by name.

Owns one folder: `NAME/` holds a model's files and its card, `.downloads/` what a pull has brought
so far, `.partial/` what is being put together. A model appears by a rename of its finished folder,
so a crash leaves a whole model or none. Copies of a model in other number formats lie in its folder
and go with it. Refuses to know drivers and adapters (`registry.py` keeps
those). Blocking: call it from a worker thread.

Does not protect against somebody who can write to the folder; `verify` finds damage, not malice.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from pydantic import ValidationError

from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_requantise import Copy, Format, copies, requantised, shipped
from llmos.memory.catalogue import CATALOGUE, Known
from llmos.memory.fetched import Progress
from llmos.memory.model_card import CARD_NAME, Card
from llmos.memory.model_pull import describe, fetch, hash_with_progress
from llmos.memory.model_source import FORMS, Source, parse_source
from llmos.syscalls.errors import SyscallError

Cards = list[Card]  # `list` means the method inside the class

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")


def models_folder() -> Path:
    """Where models are kept by default: in the folder $LLMOS_CACHE, else in the user's cache."""
    return Path(os.environ.get("LLMOS_CACHE") or platformdirs.user_cache_dir("llmos")) / "models"


class ModelStore:
    """The models in one folder. Safe for several threads and processes at once."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or models_folder()

    def pull(
        self, source_or_name: str, *, name: str | None = None, progress: Progress | None = None
    ) -> Card:
        """Bring a model here and return its card; one that is here already is not fetched again.

        A name of the catalogue, or a source (see `model_source.py`); `name` is what to call it.
        `progress` hears the stage, the bytes done and the bytes in all where known. Pulls take
        turns, so two of one name at once fetch it once.
        Raises: SyscallError: "unknown_model" for a word that is neither, "invalid" for a source
        that cannot be read or a name in use, "not_available" when it cannot be had or is not what
        the catalogue expects, "storage" when the disk refuses.
        """
        known = CATALOGUE.get(source_or_name)
        if known is None and ":" not in source_or_name:
            raise self._unknown(source_or_name)
        source = parse_source(known.source if known else source_or_name)
        name = _checked_name(name or (known.name if known else source.default_name))
        tell = progress or _tell_nobody
        with self._storage_errors(), self._lock(tell):
            card = self._card(name)
            if card is not None and card.source != str(source):
                raise SyscallError(
                    "invalid",
                    f"the name {name} is taken by {card.source}; choose another name, or remove "
                    "that model first",
                    field="name",
                )
            if card is None or self._problem(card) is not None:
                card = self._fetch(source, name, known, tell)
            return card

    def path(self, name: str) -> Path:
        """The file to open (GGUF) or the folder (safetensors).

        Raises: SyscallError("unknown_model") with the names that are here, ("storage") when a file
        is missing or cut short.
        """
        card = self.card(name)
        problem = self._problem(card)
        if problem is not None:
            raise self._damaged(card, problem)
        return self.folder / name / card.file if card.file else self.folder / name

    def find(self, source_or_name: str) -> Path:
        """Where a model is: a `file:` source in its own place, everything else in the store.

        Raises: as `path`; SyscallError("invalid") for a source that cannot be read.
        """
        if source_or_name.startswith("file:"):
            return Path(source_or_name.removeprefix("file:")).expanduser().absolute()
        if ":" in source_or_name:
            return self.path(parse_source(source_or_name).default_name)
        return self.path(source_or_name)

    def card(self, name: str) -> Card:
        """A model's card. Raises: SyscallError("unknown_model"), ("storage")."""
        with self._storage_errors():
            card = self._card(name) if _NAME.fullmatch(name) else None
        if card is None:
            raise self._unknown(name)
        return card

    def list(self) -> Cards:
        """The cards of all models, by name. Raises: SyscallError("storage")."""
        if not self.folder.exists():
            return []
        with self._storage_errors():
            names = sorted(p.name for p in self.folder.iterdir() if _NAME.fullmatch(p.name))
            return [card for name in names if (card := self._card(name)) is not None]

    def verify(self, name: str, *, progress: Progress | None = None) -> Card:
        """Read every byte of a model and compare with its card.

        Raises: SyscallError("unknown_model"), ("storage") naming the first wrong file.
        """
        card = self.card(name)
        problem = self._problem(card)
        if problem is None:
            with self._storage_errors():
                # What a driver keeps beside the model, such as a converted copy, is its affair.
                paths = [file.path for file in card.files]
                found = hash_with_progress(self.folder / name, paths, progress or _tell_nobody)
            pairs = zip(card.files, found, strict=True)
            wrong = (was.path for was, now in pairs if was.sha256 != now.sha256)
            problem = next((f"{path} has changed since it was pulled" for path in wrong), None)
        if problem is not None:
            raise self._damaged(card, problem)
        return card

    def remove(self, name: str) -> None:
        """Delete a model. Raises: SyscallError("unknown_model"), ("storage")."""
        if not _NAME.fullmatch(name) or not (self.folder / name).is_dir():
            raise self._unknown(name)
        with self._storage_errors(), self._lock(_tell_nobody):
            self._discard(name)

    # --- copies in other number formats ---

    def copies(self, name: str) -> tuple[Copy, ...]:
        """The copies of a GGUF model that were made here. Raises: as `path`."""
        path = self.path(name)
        return copies(path) if path.is_file() else ()

    def copy(self, name: str, format: Format) -> Path:
        """A model in another number format, made unless it is here; that takes seconds.

        Raises: as `path`; SyscallError("invalid") for a model that is no GGUF file or has that
        format already, ("storage") when the copy cannot be made.
        """
        path = self.path(name)
        if not path.is_file():
            raise SyscallError(
                "invalid", f"{name} is no GGUF file; it has no copies", field="quantize"
            )
        try:
            if shipped(path).format == format:
                raise SyscallError("invalid", f"{name} is {format} as shipped", field="quantize")
            return requantised(path, format)
        except DeviceError as problem:
            raise SyscallError("storage", str(problem), path=str(path.parent)) from problem

    def remove_copy(self, name: str, format: str) -> None:
        """Delete a copy. Raises: SyscallError("not_found") naming those that are here."""
        here = self.copies(name)
        found = next((copy for copy in here if copy.format == format.upper()), None)
        if found is None:
            formats = ", ".join(copy.format for copy in here) or "none"
            raise SyscallError(
                "not_found",
                f"there is no {format} copy of {name}; here are: {formats}",
                what="copy",
                name=f"{name}:{format}",
            )
        with self._storage_errors():
            found.path.unlink()

    # --- putting a model in its place ---

    def _fetch(self, source: Source, name: str, known: Known | None, progress: Progress) -> Card:
        partial, downloads = self.folder / ".partial", self.folder / ".downloads"
        # Under the lock, whatever lies there is of a pull that was killed.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        target = partial / name
        target.mkdir()
        try:
            fetched = fetch(source, target, downloads, progress)
            try:
                card = describe(source, name, target, fetched, known=known, progress=progress)
            except SyscallError:
                fetched.discard()  # what is not the model would not be it the next time
                raise
            (target / CARD_NAME).write_text(card.model_dump_json(indent=1))
            _flush(target)
            if (self.folder / name).exists():
                self._discard(name)  # damaged, or there would have been no fetch
            target.rename(self.folder / name)
            _flush_folder(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        fetched.discard()
        progress("ready", card.bytes, card.bytes)
        return card

    def _discard(self, name: str) -> None:
        # By a rename first: a model that is half deleted must not look like one.
        removed = self.folder / ".removed"
        shutil.rmtree(removed, ignore_errors=True)
        (self.folder / name).rename(removed)
        shutil.rmtree(removed)

    # --- looking ---

    def _card(self, name: str) -> Card | None:
        path = self.folder / name / CARD_NAME
        if not path.exists():
            return None
        try:
            return Card.model_validate_json(path.read_bytes())
        except ValidationError as problem:
            raise SyscallError(
                "storage",
                f"{path} cannot be read as a model card; remove {name} and pull it again",
                path=str(path),
            ) from problem

    def _problem(self, card: Card) -> str | None:
        """What a look at the sizes finds wrong, or None."""
        for file in card.files:
            path = self.folder / card.name / file.path
            if not path.is_file():
                return f"{file.path} is missing"
            has = path.stat().st_size
            if has != file.bytes:
                return f"{file.path} has {has:,} bytes, not {file.bytes:,}"
        return None

    def _damaged(self, card: Card, problem: str) -> SyscallError:
        wanted = card.name if card.name in CATALOGUE else f"{card.source} --name {card.name}"
        return SyscallError(
            "storage",
            f"the model {card.name} is damaged: {problem}; `llmos pull {wanted}` repairs it",
            path=str(self.folder / card.name),
        )

    def _unknown(self, name: str) -> SyscallError:
        here = [card.name for card in self.list()]
        if name in CATALOGUE:
            remedy = f"it is not on this machine yet; `llmos pull {name}` brings it"
        else:
            can = ", ".join(CATALOGUE)
            remedy = f"here are: {', '.join(here) or 'none'}; `llmos pull` brings {can}, {FORMS}"
        return SyscallError(
            "unknown_model",
            f"there is no model {name}: {remedy}",
            name=name,
            known=sorted({*here, *CATALOGUE}),
        )

    @contextmanager
    def _lock(self, progress: Progress) -> Generator[None]:
        """One change of the store at a time, whichever thread or process makes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another pull", 0, None)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _storage_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as problem:
            where = problem.filename or self.folder
            raise SyscallError(
                "storage",
                f"the model store cannot use {where}: {problem.strerror or problem}; free space "
                "there, mend its permissions, or set LLMOS_CACHE to another folder",
                path=str(where),
            ) from problem


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SyscallError(
            "invalid",
            f"{name!r} cannot name a model: use up to 64 letters, digits, dots, dashes",
            field="name",
        )
    return name


def _tell_nobody(stage: str, done_bytes: int, total_bytes: int | None) -> None:
    """The progress of a pull that nobody watches."""


def _flush(folder: Path) -> None:
    """Make files and their names durable before the rename that shows them."""
    for path in folder.rglob("*"):
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
