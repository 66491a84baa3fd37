"""What is exported comes back whole, and other stores' collections come in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.memory.export import export
from llmos.memory.importing import Imported, bring_in, open_records
from llmos.memory.ingest.intake import Embedded
from llmos.memory.portable import as_json, from_json
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Fact

LONG_AGO = 1_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    ticks = itertools.count(LONG_AGO)
    opened = Store(tmp_path / "one", dimensions=2, clock=lambda: next(ticks))
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "other", dimensions=2)
    yield opened
    opened.close()


def no_embedding(texts: Sequence[str]) -> Any:
    pytest.fail(f"embedded {texts}")


def embed(texts: Sequence[str]) -> Embedded:
    return Embedded([[1.0, float(len(text))] for text in texts])


def fill(store: Store) -> None:
    (whole,) = store.remember("a", [Note(text="A whole page.")], [[1, 0]]).ids
    store.remember(
        "a",
        [
            Note(text="Its part.", parent=whole, position=1, source="page.md"),
            Note(text="Café ☕", metadata={"n": 1, "tags": ["x"]}, importance=0.9, expires_at=9e9),
        ],
        [[0, 1], [1, 1]],
        owner="ann",
    )
    for place in ("Rome", "Oslo"):
        fact = Fact(subject="Ann", relation="lives in", object=place)
        store.remember("b", [Note(text=f"Ann lives in {place}.", fact=fact)], [[1, 2]])


def rows(store: Store) -> list[dict[str, Any]]:
    """All that a store says of its notes, but for their ids; links by the text they lead to."""
    with store.reading() as reader:
        ids = [note for (note,) in reader.sql.execute("SELECT id FROM notes ORDER BY id")]
        notes = reader.notes(ids)
        edges = reader.sql.execute("SELECT subject, relation, object FROM edges").fetchall()
        vectors = reader.vectors(ids).round(4).tolist()
    said = []
    for row, vector in zip(notes.values(), vectors, strict=True):
        value = {**row._asdict(), "vector": vector, "edges": edges}
        del value["id"]
        for link in ("parent", "superseded_by"):
            value[link] = value[link] and notes[value[link]].text
        said.append(value)
    return said


def brought(store: Store, path: Path, **options: Any) -> Imported:
    names = ("origin", "texts", "collection")
    opening = {name: options.pop(name) for name in names if name in options}
    options.setdefault("embed", no_embedding)
    return bring_in(store, open_records(path, **opening), **options)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_exported_comes_back_whole(
    suffix: str, store: Store, other: Store, tmp_path: Path
) -> None:
    fill(store)
    file = tmp_path / f"notes.{suffix}"
    assert export(store, file) == 5
    assert brought(other, file, keeps_vectors=True) == Imported(5, 0, 0)
    assert rows(other) == rows(store)


def test_a_second_import_stores_nothing_twice(store: Store, other: Store, tmp_path: Path) -> None:
    fill(store)
    export(store, tmp_path / "notes.jsonl")
    brought(other, tmp_path / "notes.jsonl", keeps_vectors=True)
    before = rows(other)
    again = brought(other, tmp_path / "notes.jsonl", keeps_vectors=True)
    assert (again.notes, again.duplicates) == (0, 5)
    assert rows(other) == before


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_without_vectors_texts_are_embedded(
    suffix: str, store: Store, other: Store, tmp_path: Path
) -> None:
    fill(store)
    file = tmp_path / f"notes.{suffix}"
    export(store, file, namespaces=["a"], with_vectors=False)
    assert brought(other, file, embed=embed, namespace="c") == Imported(3, 0, 3)
    assert [one.namespace for one in other.stat().namespaces] == ["c"]


def test_an_export_is_there_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="jsonl or"):
        export(store, tmp_path / "notes.txt")
    with pytest.raises(SyscallError, match="cannot write"):
        export(store, tmp_path / "nowhere" / "notes.jsonl")
    assert not list(tmp_path.glob("notes*"))


def test_json_lines_of_others_are_read(other: Store, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        {"page_content": "One.", "metadata": {"source": "a.md"}, "lang": "en"},
        {"id": "x7", "text": "Two.", "vector": [0, 1]},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert brought(other, file, embed=embed, namespace="n", keeps_vectors=True).embedded == 1
    one, two = rows(other)
    assert (one["source"], one["metadata"]) == ("a.md", {"source": "a.md", "lang": "en"})
    assert two["vector"] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\nnonsense\n', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no object"),
        ("a.jsonl", b'{"words": "x"}\n', "it has no text"),
        ("a.jsonl", b'{"text": "x", "importance": 7}\n', "importance"),
        ("a.jsonl", b'{"text": "x", "vector": "!"}\n', "not base64"),
        ("a.jsonl", b'{"llmos_memory": 99}\n', "update llmos"),
        ("a.parquet", b"nonsense", "no Parquet file"),
        ("a.faiss", b"nonsense", "name their JSON lines"),
        ("a.txt", b"nonsense", "say what it is"),
    ],
)
def test_what_cannot_be_read_is_refused(
    name: str, content: bytes, said: str, other: Store, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SyscallError, match=said) as caught:
        brought(other, tmp_path / name, embed=embed, namespace="n")
    assert caught.value.code == "invalid"


def test_notes_need_a_namespace_and_vectors_their_size(other: Store, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "vector": [1, 2, 3]}\n')
    with pytest.raises(SyscallError, match="where to put them"):
        brought(other, file)
    with pytest.raises(SyscallError, match="dimensions"):
        brought(other, file, namespace="n", keeps_vectors=True)
    with pytest.raises(SyscallError, match="there is no"):
        brought(other, tmp_path / "gone.jsonl")


@pytest.mark.parametrize("has_ids", [False, True])
def test_a_faiss_index_comes_in_with_its_texts(has_ids: bool, other: Store, tmp_path: Path) -> None:
    import faiss

    vectors = np.array([[1, 0], [0, 1]], dtype=np.float32)
    index: Any = faiss.IndexFlatIP(2)
    if has_ids:
        index = faiss.IndexIDMap(index)
        index.add_with_ids(vectors, np.array([8, 7]))
    else:
        index.add(vectors)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    texts = tmp_path / "a.jsonl"
    texts.write_text('{"id": 7, "text": "seven"}\n{"id": 8, "text": "eight"}\n')
    done = brought(other, tmp_path / "a.faiss", texts=texts, namespace="n", keeps_vectors=True)
    assert done == Imported(2, 0, 0)
    found = {row["text"]: row["vector"] for row in rows(other)}
    swapped = {"seven": [0, 1], "eight": [1, 0]}
    in_order = {"seven": [1, 0], "eight": [0, 1]}
    assert found == (swapped if has_ids else in_order)


def test_a_faiss_index_with_other_texts_is_refused(other: Store, tmp_path: Path) -> None:
    import faiss

    index: Any = faiss.IndexFlatIP(2)
    index.add(np.eye(2, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    texts = tmp_path / "a.jsonl"
    texts.write_text('{"text": "one"}\n')
    with pytest.raises(SyscallError, match="holds 2 vectors"):
        brought(other, tmp_path / "a.faiss", texts=texts, namespace="n", embed=embed)
    texts.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    with pytest.raises(SyscallError, match="no vector for line 3"):
        brought(other, tmp_path / "a.faiss", texts=texts, namespace="n", embed=embed)


def test_a_record_is_the_same_through_json() -> None:
    record = from_json({"text": "x", "id": 3, "owner": "ann", "created_at": 5.0}, "here")
    assert from_json(as_json(record), "here") == record


def test_an_import_can_be_searched(store: Store, other: Store, tmp_path: Path) -> None:
    fill(store)
    export(store, tmp_path / "notes.parquet")
    brought(other, tmp_path / "notes.parquet", keeps_vectors=True)
    query = Query(text="oslo rome", mode="lexical", namespaces=["b"])
    assert [hit.text for hit in other.retrieve(query).hits] == ["Ann lives in Oslo."]


@pytest.mark.filterwarnings("ignore")  # chromadb's own
def test_a_chroma_collection_comes_in_and_is_left_alone(other: Store, tmp_path: Path) -> None:
    chromadb = pytest.importorskip("chromadb")
    folder = tmp_path / "chroma"
    client = chromadb.PersistentClient(path=str(folder))
    collection = client.create_collection("docs", embedding_function=None)
    collection.add(
        ids=["a", "b", "c"],
        documents=["One.", "Two.", None],
        metadatas=[{"source": "a.md", "n": 1}, {"n": 2}, {"n": 3}],
        embeddings=[[1, 0], [0, 1], [1, 1]],
    )
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert brought(other, folder, namespace="n", keeps_vectors=True) == Imported(2, 0, 0)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    one, two = rows(other)
    assert (one["text"], one["source"], one["vector"]) == ("One.", "a.md", [1, 0])
    assert (two["metadata"], two["vector"]) == ({"n": 2}, [0, 1])
    client.create_collection("more", embedding_function=None)
    with pytest.raises(SyscallError, match="docs, more"):
        brought(other, folder, namespace="n", embed=embed)
    assert brought(other, folder, collection="docs", namespace="n", embed=embed).duplicates == 2
