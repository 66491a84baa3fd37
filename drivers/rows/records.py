"""Data files as records: the fields of each row, and where in the file it stands.

Owns the file forms: JSON lines, a JSON list, CSV and TSV, Parquet, a folder saved by the `datasets`
library, CoNLL columns, plain text and folders of it. Refuses to know what the fields mean
(`forms.py`). A row that cannot be read is given as an error in its place, so that a check can tell
of all of them; a file that cannot be read raises.

Text files are read here and not by `datasets` because its readers know no line numbers. Parquet and
saved folders have none, and there `datasets` gives class numbers their names.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from llmos.drivers.rows.problems import refused, refused_file
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
_BATCH_ROWS = 1024
_HUGGINGFACE = b"huggingface"  # where `datasets` keeps the names of classes in a Parquet file
_DOCSTART = "-DOCSTART-"  # a line of CoNLL-2003 that is no token


class Record(NamedTuple):
    """One row as its file has it. Lists of `tokens` and `tags` stand for CoNLL sentences."""

    fields: JsonObject
    origin: str
    group: str | None = None  # the file's own, where it has one


Records = Iterator[Record | SyscallError]


def read_records(path: Path, *, name: str | None = None) -> Records:
    """The records of a file in order, blank ones passed over; its form is told by its suffix.

    A suffix that is not known is read as JSON lines. `name` is what origins call the file; without
    one they count rows. Raises: SyscallError: "not_found", "storage", "invalid" for what is wrong
    with the file as a whole.
    """
    shown = _Shown(name)
    try:
        if path.is_dir():
            yield from _folder(path, shown)
        else:
            path.open("rb").close()  # before any library says it in its own words
            yield from _READERS.get(path.suffix.lower(), _json_lines)(path, shown)
    except FileNotFoundError as problem:
        raise SyscallError(
            "not_found", f"there is no data file {path}", what="file", name=str(path)
        ) from problem
    except OSError as problem:
        raise SyscallError(
            "storage", f"the data file {path} cannot be read: {problem}", path=str(path)
        ) from problem


class _Shown(NamedTuple):
    """How errors name a file and its lines."""

    name: str | None

    @property
    def file(self) -> str:
        return self.name or "the list"

    def line(self, number: int) -> str:
        return f"{self.name}:{number}" if self.name else f"row {number}"

    def row(self, number: int) -> str:
        """A row of a file that has no lines."""
        return f"{self.name}: row {number}" if self.name else f"row {number}"


# --- JSON -----------------------------------------------------------------------------------------


def _json_lines(path: Path, shown: _Shown) -> Records:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_record(line, shown.line(number))


def _json_record(line: bytes, origin: str) -> Record | SyscallError:
    try:
        row: Any = json.loads(line)
    except UnicodeDecodeError as problem:
        return refused(origin, "(line)", f"not UTF-8: {problem.reason}")
    except (ValueError, RecursionError) as problem:
        return refused(origin, "(line)", f"not JSON: {problem}")
    return _object(row, origin)


def _json_list(path: Path, shown: _Shown) -> Records:
    """A file that is one JSON list of objects, as Alpaca and ShareGPT are handed on."""
    try:
        rows: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise refused_file(
            shown.file, f"not JSON: {problem}; a file of one object a line is named .jsonl"
        ) from problem
    if not isinstance(rows, list):
        raise refused_file(
            shown.file, f"a JSON file must hold a list of objects, not {type(rows).__name__}"
        )
    for number, row in enumerate(cast("list[Any]", rows), start=1):
        yield _object(row, shown.row(number))


def _object(row: Any, origin: str) -> Record | SyscallError:
    if not isinstance(row, dict):
        return refused(origin, "(line)", f"not a JSON object but {type(row).__name__}")
    return Record(cast(JsonObject, row), origin)


# --- CSV ------------------------------------------------------------------------------------------


def _csv(path: Path, shown: _Shown) -> Records:
    return _separated(path, shown, ",")


def _tsv(path: Path, shown: _Shown) -> Records:
    return _separated(path, shown, "\t")


@contextmanager
def _long_fields(chars: int) -> Generator[None]:
    """Within it CSV fields may be so long; the limit, 128 KiB at first, is the whole process's."""
    before = csv.field_size_limit(chars)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _separated(path: Path, shown: _Shown, delimiter: str) -> Records:
    """Rows of a file whose first line names the columns; a quoted field may span lines."""
    text = _text_of(path, shown)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: Sequence[str] | None = None
    while True:
        origin = shown.line(reader.line_num + 1)
        try:
            with _long_fields(len(text) + 1):
                cells = next(reader, None)
        except csv.Error as problem:  # what follows cannot be told apart from this row
            yield refused(origin, "(line)", f"not CSV: {problem}; check its quotes")
            return
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
            _check_columns(columns, origin)
        elif len(cells) != len(columns):
            yield refused(
                origin,
                "(line)",
                f"{len(cells)} fields where the first line names {len(columns)}; quote a field "
                "that holds the separator",
            )
        else:
            yield Record(dict(zip(columns, cells, strict=True)), origin)


def _check_columns(columns: Sequence[str], origin: str) -> None:
    for column in columns:
        if not column or columns.count(column) > 1:
            why = "is named twice" if column else "has no name"
            raise refused(origin, column or "(line)", f"a column {why} in the first line")


def _text_of(path: Path, shown: _Shown) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise refused(shown.line(line), "(line)", f"not UTF-8: {problem.reason}") from problem


# --- Parquet and saved datasets -------------------------------------------------------------------


def _parquet(path: Path, shown: _Shown) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet: Any = pq
    arrow: Any = pa
    try:
        file = parquet.ParquetFile(path)
        batches: Any = file.iter_batches(batch_size=_BATCH_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from _counted(rows, shown, _class_names(file.schema_arrow))
    except arrow.ArrowInvalid as problem:
        raise refused_file(shown.file, f"not a Parquet file: {problem}") from problem


def _class_names(schema: Any) -> Any:
    """The features that `datasets` wrote into a schema, if it did."""
    if _HUGGINGFACE not in (schema.metadata or {}):
        return {}
    import datasets

    features: Any = datasets.Features
    return features.from_arrow_schema(schema)


def _saved(path: Path, shown: _Shown) -> Records:
    import datasets

    library: Any = datasets
    try:
        saved = library.load_from_disk(str(path))
    except (ValueError, KeyError) as problem:
        raise refused_file(shown.file, f"not a saved dataset: {problem}") from problem
    if isinstance(saved, library.DatasetDict):
        raise refused_file(
            shown.file, f"holds several sets; name the folder of one: {', '.join(saved)}"
        )
    yield from _counted(saved, shown, saved.features)


def _counted(rows: Iterable[JsonObject], shown: _Shown, features: Any) -> Records:
    named = {field: to_name for field in features if (to_name := _to_name(features[field]))}
    for number, row in enumerate(rows, start=1):
        for field, to_name in named.items():
            if row[field] is not None:
                row[field] = to_name(row[field])
        yield Record(row, shown.row(number))


def _to_name(feature: Any) -> Callable[[Any], Any] | None:
    """How a column of class numbers, or of lists of them, becomes names; None for any other."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "int2str", None)


# --- CoNLL ----------------------------------------------------------------------------------------


def _conll(path: Path, shown: _Shown) -> Records:
    """Sentences of one token a line: its text first, its tag last; a blank line ends a sentence.

    Columns are parted by a TAB, or by blanks in a line that has none. A sentence with a bad line is
    one error.
    """
    tokens: list[str] = []
    tags: list[str] = []
    origin, problem = "", None
    # Not splitlines: it would end a line at characters that can stand in a token.
    lines = io.StringIO(_text_of(path, shown))
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip() or line.startswith(_DOCSTART):
            if problem is not None:
                yield problem
            elif tokens:
                yield Record({"tokens": tokens, "tags": tags}, origin)
            tokens, tags, problem = [], [], None
            continue
        origin = origin if tokens else shown.line(number)
        columns = line.rstrip("\r\n").split("\t" if "\t" in line else None)
        if len(columns) < 2:
            problem = problem or refused(
                shown.line(number), "tag", f"missing: the line has the token {columns[0]!r} alone"
            )
        tokens.append(columns[0])
        tags.append(columns[-1].strip())


# --- text -----------------------------------------------------------------------------------------


def _text(path: Path, shown: _Shown) -> Records:
    """Paragraphs: what blank lines part."""
    lines: list[str] = []
    start = 1
    for number, line in enumerate([*io.StringIO(_text_of(path, shown)), ""], start=1):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield Record({"text": "".join(lines).strip("\r\n")}, shown.line(start))
            lines = []


def _folder(path: Path, shown: _Shown) -> Records:
    """A saved dataset, or the text files of a folder and all below it in the order of their names.

    Each record of a text file has the file's name as its group.
    """
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        yield from _saved(path, shown)
        return
    found = sorted(
        Path(folder) / file
        for folder, _, files in os.walk(path)
        for file in files
        if file.lower().endswith(TEXT_SUFFIXES)
    )
    if not found:
        raise refused_file(
            shown.file, f"the folder has no text file ({', '.join(TEXT_SUFFIXES)}) in it"
        )
    for file in found:
        inner = str(file.relative_to(path))
        for record in _text(file, _Shown(f"{shown.name}/{inner}" if shown.name else inner)):
            yield record._replace(group=inner) if isinstance(record, Record) else record


_READERS: dict[str, Callable[[Path, _Shown], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".conll": _conll,
    ".bio": _conll,
    ".iob": _conll,
    **dict.fromkeys(TEXT_SUFFIXES, _text),
}
