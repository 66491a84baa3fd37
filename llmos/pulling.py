"""Bringing models here with somebody watching: a bar on a terminal, lines in a log."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from llmos.syscalls.errors import SyscallError
from llmos.tables import size

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos.config import Config
    from llmos.memory.model_card import Card
    from llmos.memory.model_store import ModelStore

    Tell = Callable[[str, int, int | None], None]


def needed_models(config: Config) -> tuple[str, ...]:
    """The names in the store of the models that a kernel started by a person will want first."""
    default = config.models[config.default_model]
    if default.driver == "scripted":
        return ()
    of_default = () if default.driver == "remote" else (default.source,)
    of_reranker = () if config.reranker is None else (config.reranker.source,)
    return (*of_default, config.embedding.source, *of_reranker)


def bring_models(config: Config, screen: Console) -> None:
    """Pull what is missing of the default models; with `config.offline` only look.

    A language model that comes here has its number formats compared, which takes about as long.

    Raises: SyscallError("unknown_model") when offline, otherwise as `ModelStore.pull`.
    """
    for source in needed_models(config):
        if _bring(config, source, screen):
            from llmos.tuning_run import tune_pulled  # only here: every start would pay for it

            tune_pulled(config, source, screen)


def bring_embedding(config: Config, screen: Console) -> None:
    """Pull the embedding model if it is missing; raises as `bring_models`."""
    _bring(config, config.embedding.source, screen)


def open_store(config: Config) -> ModelStore:
    """The store in the configured cache folder."""
    from llmos.memory.model_store import ModelStore

    return ModelStore(config.models_folder)


def is_here(store: ModelStore, name: str) -> bool:
    """Whether a model is here and whole, by a look at its files' sizes."""
    try:
        store.path(name)
    except SyscallError as problem:
        if problem.code in ("unknown_model", "storage"):
            return False
        raise
    return True


def pull(store: ModelStore, source: str, screen: Console, *, name: str | None = None) -> Card:
    """Pull one model, showing how far it is. Raises: as `ModelStore.pull`."""
    with _watched(source, screen) as tell:
        return store.pull(source, name=name, progress=tell)


# --- internals ------------------------------------------------------------------------------------


def _bring(config: Config, source: str, screen: Console) -> bool:
    """Pull a model unless it is here; whether it had to be."""
    store = open_store(config)
    if is_here(store, source):
        return False
    if config.offline:
        store.card(source)  # raises, naming what is here and how to get the rest
    pull(store, source, screen)
    return True


@contextmanager
def _watched(source: str, screen: Console) -> Generator[Tell]:
    if screen.is_terminal:
        with _bar(source, screen) as tell:
            yield tell
    else:
        yield _lines(source, screen)


@contextmanager
def _bar(source: str, screen: Console) -> Generator[Tell]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task(source, total=None)

        def tell(stage: str, done_bytes: int, total_bytes: int | None) -> None:
            progress.update(
                task, description=f"{source}: {stage}", completed=done_bytes, total=total_bytes
            )

        yield tell


def _lines(source: str, screen: Console) -> Tell:
    """A line per stage, not per byte."""
    last = ""

    def tell(stage: str, done_bytes: int, total_bytes: int | None) -> None:
        nonlocal last
        if stage != last:
            last = stage
            of = f" ({size(total_bytes)})" if total_bytes else ""
            screen.print(f"{source}: {stage}{of}", markup=False)

    return tell
