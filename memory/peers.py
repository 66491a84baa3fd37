"""Collections of other stores, as records: a chroma folder, and a FAISS index with its texts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from llmos.memory.portable import BATCH_RECORDS, Record, from_json, read_jsonl
from llmos.syscalls.errors import SyscallError


def chroma_records(folder: Path, collection: str | None = None) -> Iterator[Record]:
    """The documents of a chroma collection, with their metadata and vectors.

    chromadb reads a copy: opening a folder may bring it to a newer form. A document of chroma that
    is only a vector is left out.
    Raises: SyscallError("not_available") without the package chromadb; ("invalid") when the folder
    holds none, or several and none is named.
    """
    try:
        # By name: the package is not among those that a set-up installs.
        chromadb: Any = import_module("chromadb")
        settings: Any = import_module("chromadb.config").Settings
    except ImportError as problem:
        raise SyscallError(
            "not_available",
            "chroma folders are read by the package chromadb: pip install chromadb",
            field="origin",
        ) from problem
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "chroma"
        shutil.copytree(folder, copy)
        client: Any = chromadb.PersistentClient(
            path=str(copy), settings=settings(anonymized_telemetry=False)
        )
        names = sorted(one.name for one in client.list_collections())
        chosen = client.get_collection(_chosen(folder, names, collection), embedding_function=None)
        for start in range(0, chosen.count(), BATCH_RECORDS):
            page = chosen.get(
                limit=BATCH_RECORDS,
                offset=start,
                include=["documents", "metadatas", "embeddings"],
            )
            for text, metadata, vector in zip(
                page["documents"], page["metadatas"], page["embeddings"], strict=True
            ):
                if text:
                    row = {
                        "text": text,
                        "metadata": dict(metadata or {}),
                        "vector": vector.tolist(),
                    }
                    yield from_json(row, str(folder))


def faiss_records(index_file: Path, texts: Path) -> Iterator[Record]:
    """The texts of a FAISS index, which are JSON lines in the order of its vectors.

    An index with ids of its own finds the vector of a line by the line's `id`, where it has one.
    Raises: SyscallError("invalid") when the index cannot be read or give its vectors back, or holds
    another number of them.
    """
    import faiss

    try:
        index: Any = faiss.read_index(str(index_file))
    except RuntimeError as problem:
        raise _invalid(index_file, f"FAISS cannot read it: {problem}") from problem
    places: dict[int, int] | None = None
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexIDMap):
        known = faiss.vector_to_array(inner.id_map)
        places = {int(item): place for place, item in enumerate(known)}
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexIVF):
        inner.make_direct_map()
    number = 0
    for number, record in enumerate(read_jsonl(texts).records, 1):
        place = number - 1
        if places is not None and record.id is not None:
            place = places.get(record.id, -1)
        if not 0 <= place < inner.ntotal:
            raise _invalid(index_file, f"it has no vector for line {number} of {texts.name}")
        try:
            vector = inner.reconstruct(place).tolist()
        except RuntimeError as problem:
            raise _invalid(index_file, f"it does not give its vectors back: {problem}") from problem
        yield record._replace(vector=vector)
    if number != inner.ntotal:
        raise _invalid(
            index_file, f"it holds {inner.ntotal} vectors and {texts.name} has {number} texts"
        )


def _chosen(folder: Path, names: list[str], wanted: str | None) -> str:
    if wanted in names:
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    if not names:
        raise _invalid(folder, "it holds no collection")
    raise SyscallError(
        "invalid", f"{folder}: name one of its collections: {', '.join(names)}", field="collection"
    )


def _invalid(path: Path, why: str) -> SyscallError:
    return SyscallError("invalid", f"{path}: {why}", field="path")
