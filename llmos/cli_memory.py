"""The `llmos memory` commands: their options; the work is in `commands_memory.py` and
`commands_store.py`.

All work on the store of the configured home, also beside a kernel that runs there. Only `add`,
`search` and `import` open the embedding model.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmos.command_line import AsJson, ConfigFile, Offline, command, configured

app = typer.Typer(
    name="memory",
    help="What processes remember: add files, search, list, forget, export, check, back up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Mode(StrEnum):
    hybrid = "hybrid"
    dense = "dense"
    lexical = "lexical"


class Origin(StrEnum):
    auto = "auto"
    jsonl = "jsonl"
    parquet = "parquet"
    chroma = "chroma"
    faiss = "faiss"


Namespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Where the notes are kept.")
]
Namespaces = Annotated[
    list[str] | None,
    typer.Option("--namespace", "-n", metavar="NAME", help="Only this one; may be repeated."),
]
Where = Annotated[
    str | None,
    typer.Option(metavar="JSON", help='Conditions on metadata: \'{"format": "pdf"}\'.'),
]


@app.command()
@command
def add(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    namespace: Namespace = "documents",
    chunk_tokens: Annotated[
        int | None, typer.Option(min=16, metavar="N", help="Most tokens of a note.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of text that is not UTF-8.")
    ] = None,
    max_mib: Annotated[
        float, typer.Option(min=0.001, metavar="N", help="Leave out larger files.")
    ] = 32,
    forget_gone: Annotated[
        bool, typer.Option("--forget-gone", help="Forget files below PATH that are not there.")
    ] = False,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Take files and folders in, or bring them up to date; what has not changed is not read."""
    from llmos.commands_memory import add_files

    return add_files(
        configured(config, offline=offline),
        paths,
        namespace=namespace,
        chunk_tokens=chunk_tokens,
        encoding=encoding,
        max_file_bytes=int(max_mib * 2**20),
        forget_gone=forget_gone,
        as_json=as_json,
    )


@app.command()
@command
def search(
    query: Annotated[str, typer.Argument(help="What to look for, in plain words.")],
    namespaces: Namespaces = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many notes.")] = 5,
    mode: Annotated[Mode, typer.Option(help="By meaning, by words, or both.")] = Mode.hybrid,
    where: Where = None,
    neighbours: Annotated[
        int, typer.Option(min=0, max=20, metavar="N", help="Show so many notes before and after.")
    ] = 0,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Search by meaning and words, and say where each note stands."""
    from llmos.commands_memory import search_notes

    return search_notes(
        configured(config, offline=offline),
        query,
        namespaces=namespaces,
        k=k,
        mode=mode.value,
        where=where,
        neighbours=neighbours,
        as_json=as_json,
    )


@app.command()
@command
def ls(
    namespaces: Namespaces = None,
    files: Annotated[bool, typer.Option("--files", help="List the files taken in.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """List namespaces with their notes, or the files that were taken in."""
    from llmos.commands_memory import list_memory

    return list_memory(configured(config), namespaces, is_listing_files=files, as_json=as_json)


@app.command()
@command
def forget(
    namespaces: Namespaces = None,
    ids: Annotated[
        list[int] | None, typer.Option("--id", metavar="N", help="This note; may be repeated.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="PATH", help="All notes of this source.")
    ] = None,
    where: Where = None,
    owner: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is kept on somebody's behalf.")
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All of a namespace.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Delete the notes that match every selector; with --owner alone, in all namespaces."""
    from llmos.commands_memory import forget_notes

    return forget_notes(
        configured(config),
        namespaces,
        ids=ids or [],
        source=source,
        where=where,
        owner=owner,
        everything=everything,
        as_json=as_json,
    )


@app.command()
@command
def stat(as_json: AsJson = False, config: ConfigFile = None) -> int:
    """What the store holds, its index and its size."""
    from llmos.commands_memory import show_stat

    return show_stat(configured(config), as_json=as_json)


@app.command("export")
@command
def export_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.jsonl or FILE.parquet.")],
    namespaces: Namespaces = None,
    vectors: Annotated[
        bool, typer.Option("--vectors/--no-vectors", help="Write the embeddings too.")
    ] = True,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Write notes with all that is known of them to one file."""
    from llmos.commands_store import export_notes

    return export_notes(configured(config), file, namespaces, with_vectors=vectors, as_json=as_json)


@app.command("import")
@command
def import_(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="JSONL, Parquet, chroma folder, FAISS index.")
    ],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Put all notes there."),
    ] = None,
    origin: Annotated[Origin, typer.Option("--from", help="What PATH is.")] = Origin.auto,
    texts: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="The texts of a FAISS index, in order.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several chroma collections.")
    ] = None,
    keep_vectors: Annotated[
        bool, typer.Option("--keep-vectors", help="They are of the model that is configured.")
    ] = False,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Bring in notes that were exported, a chroma collection, or a FAISS index with its texts."""
    from llmos.commands_store import import_notes

    return import_notes(
        configured(config, offline=offline),
        path,
        namespace=namespace,
        origin=None if origin is Origin.auto else origin.value,
        texts=texts,
        collection=collection,
        keeps_vectors=keep_vectors,
        as_json=as_json,
    )


@app.command()
@command
def check(as_json: AsJson = False, config: ConfigFile = None) -> int:
    """Look for damage, and say what to do about it; damage gives status 1."""
    from llmos.commands_store import check_store

    return check_store(configured(config), as_json=as_json)


@app.command()
@command
def backup(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    config: ConfigFile = None,
) -> int:
    """Copy the store, whole and as of one moment, while it is in use."""
    from llmos.commands_store import back_up

    return back_up(configured(config), path)


@app.command()
@command
def vacuum(config: ConfigFile = None) -> int:
    """Give unused room back to the disk; nothing that was forgotten is left in the files."""
    from llmos.commands_store import vacuum_store

    return vacuum_store(configured(config))
