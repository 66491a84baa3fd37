"""Files come into the store once, are kept up to date, and a bad one stops nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmos.memory.ingest.ingest import Ingestion, Progress, Recipe
from llmos.memory.ingest.intake import BATCH_NOTES, Embedded
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.results import Hit, Ingested

OLD = 1_000_000_000  # long before any run: times of files tell whether they have changed


class Embedding:
    """Vectors of two dimensions, and a memory of what was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Embedded:
        self.texts += texts
        return Embedded([[1.0, len(text) / 100] for text in texts])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", dimensions=2)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    write(made / "lamp.md", "# Lamp\n\nThe lamp is red.\n\n# Ship\n\nShips see it.\n")
    write(made / "deep" / "tide.txt", "The tide is low.")
    return made


def write(path: Path, data: str | bytes, mtime_s: int = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    os.utime(path, (mtime_s, mtime_s))


def ingest(store: Store, *paths: Path, embed: Any = None, **options: Any) -> Ingested:
    forgets_gone = options.pop("forgets_gone", False)
    count = options.pop("count", lambda text: len(text.split()))
    run = Ingestion(store, "docs", embed=embed or Embedding(), count=count, **options)
    return run.run(paths, forgets_gone=forgets_gone)


def found(store: Store, words: str) -> list[Hit]:
    query = Query(text=words, mode="lexical", namespaces=["docs"], k=50)
    return list(store.retrieve(query).hits)


def test_files_are_found_again_with_their_places(store: Store, folder: Path) -> None:
    done = ingest(store, folder, recipe=Recipe(chunk_tokens=6))
    assert (done.new, done.notes, done.refused) == (2, 3, 0)
    (hit,) = found(store, "ships")
    assert hit.text == "Ship\n\nShips see it."
    assert (hit.source, hit.position) == (str(folder / "lamp.md"), 1)
    assert hit.metadata == {"format": "markdown", "section": "Ship", "line": 7}
    assert hit.importance == 1.0


def test_what_has_not_changed_is_not_read_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(store, folder)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file was opened"))
    again = ingest(store, folder)
    assert (again.new, again.changed, again.unchanged, again.notes) == (0, 0, 2, 0)


def test_a_changed_file_replaces_what_was_there(store: Store, folder: Path) -> None:
    ingest(store, folder)
    write(folder / "deep" / "tide.txt", "The tide is high.", OLD + 1)
    again = ingest(store, folder)
    assert (again.changed, again.unchanged, again.notes, again.forgotten) == (1, 1, 1, 1)
    assert [hit.text for hit in found(store, "tide")] == ["The tide is high."]


def test_only_what_is_new_in_a_file_is_embedded(store: Store, folder: Path) -> None:
    ingest(store, folder, recipe=Recipe(chunk_tokens=6))
    write(folder / "lamp.md", "# Lamp\n\nThe lamp is blue.\n\n# Ship\n\nShips see it.\n", OLD + 1)
    embedding = Embedding()
    again = ingest(store, folder, embed=embedding, recipe=Recipe(chunk_tokens=6))
    assert embedding.texts == ["Lamp\n\nThe lamp is blue."]
    assert (again.reused, again.notes) == (1, 1)


def test_a_file_whose_time_alone_has_changed_is_unchanged(store: Store, folder: Path) -> None:
    ingest(store, folder)
    os.utime(folder / "lamp.md", (OLD + 5, OLD + 5))
    again = ingest(store, folder)
    assert (again.unchanged, again.forgotten) == (2, 0)
    assert found(store, "lamp")


def test_a_file_that_changed_in_the_instant_of_its_reading_is_seen(
    store: Store, folder: Path
) -> None:
    path = folder / "fresh.txt"
    path.write_text("one")
    ingest(store, folder)
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ingest(store, folder).changed == 1


def test_another_recipe_reads_all_again(store: Store, folder: Path) -> None:
    ingest(store, folder)
    again = ingest(store, folder, recipe=Recipe(chunk_tokens=5))
    assert (again.changed, again.unchanged) == (2, 0)


def test_notes_that_somebody_forgot_come_back(store: Store, folder: Path) -> None:
    ingest(store, folder)
    store.forget("docs", source=str(folder / "lamp.md"))
    again = ingest(store, folder)
    assert (again.new, again.unchanged) == (1, 1)
    assert found(store, "lamp")


def test_a_run_that_was_cut_short_is_made_up_for(store: Store, folder: Path) -> None:
    def dies(texts: Sequence[str]) -> Embedded:
        if len(embedding.texts) >= BATCH_NOTES:
            raise RuntimeError("killed")
        return embedding(texts)

    embedding = Embedding()
    write(folder / "long.txt", "\n\n".join(f"Line {n} of it." for n in range(2 * BATCH_NOTES)))
    recipe = Recipe(chunk_tokens=4)
    with pytest.raises(RuntimeError):
        ingest(store, folder, embed=dies, recipe=recipe)
    again = ingest(store, folder, recipe=recipe)
    assert again.refused == 0
    assert len(found(store, "line")) == 50
    positions = sorted(hit.position or 0 for hit in found(store, "line"))
    assert len(set(positions)) == 50
    assert ingest(store, folder, recipe=recipe).unchanged == 3


def test_what_is_gone_is_kept_until_asked(store: Store, folder: Path) -> None:
    ingest(store, folder)
    (folder / "deep" / "tide.txt").unlink()
    assert ingest(store, folder).gone == 0
    assert found(store, "tide")
    again = ingest(store, folder, forgets_gone=True)
    assert (again.gone, again.forgotten) == (1, 1)
    assert not found(store, "tide")


def test_a_file_can_be_named_itself(store: Store, folder: Path) -> None:
    assert ingest(store, folder / "lamp.md").new == 1
    (folder / "lamp.md").unlink()
    again = ingest(store, folder / "lamp.md", forgets_gone=True)
    assert (again.refused, again.gone) == (1, 1)


def test_hidden_files_and_links_are_left_out(store: Store, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "secret.txt", "secret")
    write(folder / ".hidden", "secret")
    write(folder / "node_modules" / "x.js", "secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "round").symlink_to(folder)
    assert ingest(store, folder).new == 2


def test_bad_files_are_reported_and_the_run_goes_on(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "a.png", b"\x89PNG\r\n\x1a\n" + bytes(100))
    write(folder / "b.txt", b"caf\xe9 is open")
    write(folder / "c.txt", "x" * 200)
    write(folder / "d.txt", "")
    write(folder / "e.pdf", b"%PDF-1.4 broken")
    write(folder / "locked.txt", "no")
    os.mkfifo(folder / "pipe")
    open_file = Path.open

    def refuses(path: Path, *args: Any) -> Any:
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *args)

    monkeypatch.setattr(Path, "open", refuses)
    done = ingest(store, folder, folder / "nowhere", recipe=Recipe(max_file_bytes=100 + 99))
    assert {Path(one.path).name: one.problem for one in done.problems} == {
        "a.png": "binary",
        "b.txt": "encoding",
        "c.txt": "too_large",
        "d.txt": "empty",
        "e.pdf": "damaged",
        "locked.txt": "unreadable",
        "pipe": "unreadable",
        "nowhere": "unreadable",
    }
    assert (done.new, done.refused) == (2, 8)


def test_a_file_that_turns_bad_keeps_its_old_notes(store: Store, folder: Path) -> None:
    write(folder / "t.csv", "name,age\nAnna,3\n")
    ingest(store, folder)
    write(folder / "t.csv", "name,age\nBob,4\n" + '"' + "x" * 200_000 + '"\n', OLD + 1)
    assert ingest(store, folder).refused == 1
    assert [hit.text for hit in found(store, "anna bob")] == ["name: Anna; age: 3"]


def test_progress_is_told_and_a_run_can_be_stopped(store: Store, folder: Path) -> None:
    seen: list[Progress] = []
    done = ingest(store, folder, on_progress=seen.append, is_cancelled=lambda: len(seen) == 1)
    assert [(one.files, Path(one.path).name) for one in seen] == [(1, "tide.txt")]
    assert done.new == 1
    assert found(store, "tide")


def test_the_same_text_twice_in_a_file_does_not_make_it_look_changed(
    store: Store, folder: Path
) -> None:
    write(folder / "t.csv", "1,2\n1,2\n")
    ingest(store, folder, recipe=Recipe(chunk_tokens=2))
    assert ingest(store, folder, recipe=Recipe(chunk_tokens=2)).unchanged == 3


class Faulty:
    """A store whose n-th write does not happen, or happens and is the last thing that does."""

    def __init__(self, store: Store, last: int, *, is_done: bool) -> None:
        self._store = store
        self._left = last
        self._is_done = is_done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("remember", "forget", "record"):
            return method

        def write(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._is_done:
                raise RuntimeError("killed")
            value = method(*args, **options)
            if self._left == 0:
                raise RuntimeError("killed")
            return value

        return write


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("last", range(1, 8))
def test_a_run_that_dies_at_any_write_is_made_up_for(
    last: int, is_done: bool, store: Store, folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe(chunk_tokens=4)

    def contents(of: Store) -> list[tuple[str | None, int | None, str]]:
        with of.reading() as reader:
            ids = [note for (note,) in reader.sql.execute("SELECT id FROM notes")]
            notes = reader.notes(ids).values()
        return sorted((row.source, row.position, row.text) for row in notes)

    ingest(store, folder, recipe=recipe)
    write(folder / "lamp.md", "# Lamp\n\nNew line here.\n\nShips see it.\n", OLD + 1)
    write(folder / "more.txt", "One more file of two chunks. It has two.")
    (folder / "deep" / "tide.txt").unlink()
    faulty: Any = Faulty(store, last, is_done=is_done)
    with suppress(RuntimeError):  # some runs end before their last write
        ingest(faulty, folder, recipe=recipe, forgets_gone=True)
    ingest(store, folder, recipe=recipe, forgets_gone=True)
    fresh = Store(tmp_path / "fresh", dimensions=2)
    ingest(fresh, folder, recipe=recipe)
    assert contents(store) == contents(fresh)
    assert ingest(store, folder, recipe=recipe).unchanged == 2
    fresh.close()


@pytest.mark.parametrize("last", range(1, 6))
def test_a_file_that_is_gone_before_it_was_all_there_is_forgotten(
    last: int, store: Store, folder: Path
) -> None:
    faulty: Any = Faulty(store, last, is_done=True)
    with suppress(RuntimeError):
        ingest(faulty, folder)
    (folder / "lamp.md").unlink()
    ingest(store, folder, forgets_gone=True)
    assert [hit.text for hit in found(store, "lamp ship tide")] == ["The tide is low."]
