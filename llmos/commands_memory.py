"""The commands about what is remembered: `memory add`, `search`, `ls`, `forget`, `stat`.

`add` and `search` need the embedding model and boot a kernel, which opens no other device; the
others open the store alone. Both work beside a kernel that runs in the same home.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from llmos import exits
from llmos.agents.grounding import shown_source, source_of
from llmos.booting import boot, open_memory
from llmos.exits import UsageError
from llmos.pulling import bring_embedding
from llmos.syscalls.calls import Ingest
from llmos.tables import console, count, seconds, size, text_table

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.memory.ingest.ingest import Progress
    from llmos.memory.store import Store
    from llmos.syscalls.results import Hit, Ingested
    from llmos.syscalls.values import JsonObject

_PROBLEMS_SHOWN = 20


def add_files(
    config: Config,
    paths: Sequence[Path],
    *,
    namespace: str,
    chunk_tokens: int | None,
    encoding: str | None,
    max_file_bytes: int,
    forget_gone: bool,
    as_json: bool,
) -> int:
    """Take files in; status 1 when none of them could be."""
    bring_embedding(config, console(is_error=True))
    call = Ingest(
        paths=tuple(str(path.resolve()) for path in paths),
        namespace=namespace,
        chunk_tokens=chunk_tokens,
        encoding=encoding,
        max_file_bytes=max_file_bytes,
        forget_gone=forget_gone,
    )
    started = time.monotonic()
    with _watched(console(is_error=True)) as tell:
        done = asyncio.run(_ingest(config, call, tell))
    if as_json:
        print(done.model_dump_json())
    else:
        _show_ingested(done, time.monotonic() - started)
    return exits.OK if done.new + done.changed + done.unchanged else exits.FAILED


def search_notes(
    config: Config,
    query: str,
    *,
    namespaces: Sequence[str] | None,
    k: int,
    mode: Literal["dense", "lexical", "hybrid"],
    where: str | None,
    neighbours: int,
    as_json: bool,
) -> int:
    """Search and show the hits, best first; status 1 when there is none."""
    if mode != "lexical":
        bring_embedding(config, console(is_error=True))
    conditions = parse_where(where)

    async def search() -> tuple[Hit, ...]:
        async with boot(config) as kernel:
            return await kernel.os.retrieve(
                query,
                k=k,
                mode=mode,
                namespaces=namespaces,
                where=conditions,
                neighbours=neighbours,
            )

    hits = asyncio.run(search())
    if as_json:
        print(json.dumps([hit.model_dump(mode="json") for hit in hits], ensure_ascii=False))
    else:
        _show_hits(hits)
    return exits.OK if hits else exits.FAILED


def list_memory(
    config: Config, namespaces: Sequence[str] | None, *, is_listing_files: bool, as_json: bool
) -> int:
    """List namespaces, or the files that were taken in."""
    with open_memory(config) as store:
        listing = _files(store, namespaces) if is_listing_files else _namespaces(store, namespaces)
    if as_json:
        print(json.dumps(listing.values, ensure_ascii=False))
    elif listing.rows:
        console().print(text_table(listing.head, listing.rows))
    else:
        say("nothing is remembered")
    return exits.OK


def forget_notes(
    config: Config,
    namespaces: Sequence[str] | None,
    *,
    ids: Sequence[int],
    source: str | None,
    where: str | None,
    owner: str | None,
    everything: bool,
    as_json: bool,
) -> int:
    """Delete notes. Raises: UsageError without a namespace, unless an owner says whose."""
    if not namespaces and owner is None:
        raise UsageError("name a namespace with -n; `llmos memory ls` lists them")
    # A file that is there is known by its whole path.
    path = str(Path(source).resolve()) if source is not None and Path(source).exists() else source
    with open_memory(config) as store:
        gone = store.forget(
            namespaces or store.namespaces(),
            ids=ids,
            source=path,
            where=parse_where(where),
            owner=owner,
            everything=everything,
        )
    if as_json:
        print(gone.model_dump_json())
    else:
        say(f"{count(gone.count)} notes are forgotten; `llmos memory vacuum` gives their room back")
    return exits.OK


def show_stat(config: Config, *, as_json: bool) -> int:
    """What the store holds and what it costs."""
    with open_memory(config) as store:
        info = store.stat()
    if as_json:
        print(info.model_dump_json())
        return exits.OK
    rows = [
        (name.replace("_", " "), size(value) if name.endswith("_bytes") else str(value))
        for name, value in info.model_dump().items()
        if value is not None and not isinstance(value, list | tuple | dict)
    ]
    console().print(text_table(("what", "value"), [("folder", str(store.folder)), *rows]))
    return exits.OK


def parse_where(word: str | None) -> JsonObject | None:
    """Conditions that were typed as JSON. Raises: UsageError."""
    if word is None:
        return None
    try:
        value = json.loads(word)
    except ValueError as problem:
        raise UsageError(f"--where {word!r} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise UsageError('--where is an object, such as {"format": "pdf"}')
    return value


def say(text: str) -> None:
    """A line for the person, not cut at the terminal's width."""
    console().print(Text(text), soft_wrap=True)


# --- internals ------------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """A list for a person and the same for a script."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[JsonObject]


def _namespaces(store: Store, names: Sequence[str] | None) -> _Listing:
    found = store.stat(names).namespaces
    return _Listing(
        ("namespace", "notes"),
        [(one.namespace, count(one.items)) for one in found],
        [one.model_dump() for one in found],
    )


def _files(store: Store, names: Sequence[str] | None) -> _Listing:
    from llmos.memory.ingest import manifest

    with store.reading() as reader:
        files = list(manifest.listed(reader.sql, names))
    rows = [
        (
            one.namespace,
            one.path,
            size(one.size_bytes),
            count(one.chunks),
            f"{datetime.fromtimestamp(one.ingested_at):%Y-%m-%d %H:%M}",
        )
        for one in files
    ]
    head = ("namespace", "file", "size", "notes", "taken in")
    return _Listing(head, rows, [one._asdict() for one in files])


async def _ingest(config: Config, call: Ingest, tell: Callable[[Progress], None]) -> Ingested:
    async with boot(config) as kernel:
        return await kernel.ingestions.ingest(kernel.init, call, on_progress=tell)


@contextmanager
def _watched(screen: Console) -> Generator[Callable[[Progress], None]]:
    """A line that changes on a terminal; elsewhere a line a thousand files."""
    if not screen.is_terminal:
        yield lambda progress: _tell(screen, progress)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("")

        def tell(progress: Progress) -> None:
            shown = f"{count(progress.files)} files, {count(progress.notes)} notes: "
            room = max(10, screen.width - len(shown) - 14)
            bar.update(task, description=shown + progress.path[-room:])

        yield tell


def _tell(screen: Console, progress: Progress) -> None:
    if progress.files % 1000 == 0:
        screen.print(f"{count(progress.files)} files, {count(progress.notes)} notes", markup=False)


def _show_ingested(done: Ingested, took_s: float) -> None:
    parts = [
        f"{count(number)} {what}"
        for number, what in (
            (done.new, "new"),
            (done.changed, "changed"),
            (done.unchanged, "unchanged"),
            (done.gone, "gone"),
            (done.refused, "refused"),
        )
        if number
    ]
    say(f"files: {', '.join(parts) or 'none'}")
    say(
        f"notes in {done.namespace}: {count(done.notes)} stored, {count(done.forgotten)} forgotten"
        f"; {size(done.bytes)} read in {seconds(took_s)}"
    )
    if done.problems:
        shown = [(one.path, one.problem, one.message) for one in done.problems[:_PROBLEMS_SHOWN]]
        console().print(text_table(("refused", "why", "what to do"), shown))
        if done.refused > len(shown):
            say(f"and {count(done.refused - len(shown))} more; --json lists them")


def _show_hits(hits: Sequence[Hit]) -> None:
    if not hits:
        say("nothing was found")
    for hit in hits:
        where = shown_source(source_of(hit)) if hit.source else f"note {hit.id}"
        head = Text(f"{hit.score:.3f}  ", style="dim")
        head.append(where)
        head.append(f"  [{hit.namespace}]", style="dim")
        console().print(head, soft_wrap=True)
        before = [one.text for one in hit.context if one.place <= 0]
        after = [one.text for one in hit.context if one.place > 0]
        for text in (*before, hit.text, *after):
            console().print(Text(text.strip()), soft_wrap=True)
        console().print()
