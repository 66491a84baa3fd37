"""Notes outside the store: one record a note, as JSON lines and as Parquet.

Records keep all that the store knows of a note, ids included, so that what a note supersedes or is
a part of can be put together again. Owns the two file forms; `export.py` and `importing.py` go
between them and the store.

A JSON line holds a record; its vector is base64 of little-endian 4-byte floats, or a list. The
first line may be a header, which says whose vectors they are.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

FORM_VERSION = 1
BATCH_RECORDS = 1000
_TEXT_NAMES = ("text", "document", "page_content", "content")
_NOTE_FIELDS = frozenset(Note.model_fields)


class Header(NamedTuple):
    """Whose vectors the records have. None: nobody said."""

    embedding_model: str | None = None
    dimensions: int | None = None


class Record(NamedTuple):
    """A note with what only the store says of it. `id` is the one that it had where it is from."""

    note: Note
    id: int | None = None
    namespace: str | None = None
    owner: str | None = None
    created_at: float | None = None
    valid_to: float | None = None
    superseded_by: int | None = None
    vector: Sequence[float] | None = None


class Records(NamedTuple):
    """An opened file of records, which can be read once."""

    header: Header
    records: Iterator[Record]


# --- JSON lines -----------------------------------------------------------------------------------


def write_jsonl(path: Path, header: Header, records: Iterable[Record]) -> int:
    """Write records; how many there were."""
    written = 0
    with path.open("w", encoding="utf-8") as file:
        first = {"llmos_memory": FORM_VERSION, **header._asdict()}
        file.write(json.dumps(first) + "\n")
        for record in records:
            value = as_json(record)
            if record.vector is not None:
                packed = np.asarray(record.vector, dtype="<f4").tobytes()
                value["vector"] = base64.b64encode(packed).decode()
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
            written += 1
    return written


def read_jsonl(path: Path) -> Records:
    """Open JSON lines, ours or others'. Raises: SyscallError("invalid") with the line, as they are
    read."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    value = _line(path, 1, first) if first.strip() else {}
    is_header = "llmos_memory" in value
    if is_header and value["llmos_memory"] != FORM_VERSION:
        raise _invalid(path, f"it is of form {value['llmos_memory']}; update llmos")
    if not is_header:
        return Records(Header(), _lines(path, skips=0))
    header = Header(value.get("embedding_model"), value.get("dimensions"))
    return Records(header, _lines(path, skips=1))


def _lines(path: Path, *, skips: int) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if number > skips and line.strip():
                yield from_json(_line(path, number, line), f"{path}:{number}")


def _line(path: Path, number: int, line: str) -> JsonObject:
    try:
        value = json.loads(line)
    except ValueError as problem:
        raise _invalid(path, f"line {number} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise _invalid(path, f"line {number} is no object")
    return value


# --- Parquet --------------------------------------------------------------------------------------


def write_parquet(path: Path, header: Header, records: Iterable[Record]) -> int:
    """Write records in row groups; how many there were."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = _schema(header)
    written = 0
    with ParquetWriter(path, schema) as writer:
        for batch in _batches(records):
            rows = [_row(record, schema) for record in batch]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            written += len(batch)
    return written


def read_parquet(path: Path) -> Records:
    """Open a Parquet file, ours or others' with a column of texts.

    Raises: SyscallError("invalid").
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as problem:
        raise _invalid(path, f"it is no Parquet file: {problem}") from problem
    said: dict[bytes, bytes] = file.schema_arrow.metadata or {}
    about = json.loads(said.get(b"llmos_memory", b"{}"))
    header = Header(about.get("embedding_model"), about.get("dimensions"))
    return Records(header, _parquet_rows(path, file))


def _parquet_rows(path: Path, file: Any) -> Iterator[Record]:
    number = 0
    for batch in file.iter_batches(batch_size=BATCH_RECORDS):
        for row in batch.to_pylist():
            number += 1
            for field in ("metadata", "fact"):
                if isinstance(row.get(field), str):
                    row[field] = json.loads(row[field])
            yield from_json(row, f"{path} row {number}")


def _schema(header: Header) -> Any:
    import pyarrow as pa

    fields = [
        pa.field("id", pa.int64()),
        pa.field("namespace", pa.string()),
        pa.field("owner", pa.string()),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("metadata", pa.string()),
        pa.field("source", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("created_at", pa.float64()),
        pa.field("expires_at", pa.float64()),
        pa.field("valid_from", pa.float64()),
        pa.field("valid_to", pa.float64()),
        pa.field("superseded_by", pa.int64()),
        pa.field("importance", pa.float64()),
        pa.field("parent", pa.int64()),
        pa.field("fact", pa.string()),
    ]
    if header.dimensions is not None:
        fields.append(pa.field("vector", pa.list_(pa.float32(), header.dimensions)))
    about = json.dumps({"form": FORM_VERSION, **header._asdict()})
    return pa.schema(fields, metadata={"llmos_memory": about})


def _row(record: Record, schema: Any) -> JsonObject:
    row = as_json(record)
    row["metadata"] = json.dumps(row.get("metadata", {}), ensure_ascii=False)
    if "fact" in row:
        row["fact"] = json.dumps(row["fact"], ensure_ascii=False)
    if "vector" in schema.names:
        row["vector"] = record.vector
    return row


# --- a record as JSON -----------------------------------------------------------------------------


def as_json(record: Record) -> JsonObject:
    """A record without its vector; what is None is left out."""
    rest = {
        name: value
        for name, value in record._asdict().items()
        if value is not None and name not in ("note", "vector")
    }
    return {**rest, **record.note.model_dump(mode="json", exclude_none=True)}


def from_json(value: JsonObject, where: str) -> Record:
    """A record of ours, or another's object with a text: what is not known becomes metadata.

    Raises: SyscallError("invalid").
    """
    given = {name: item for name, item in value.items() if item is not None}
    named = next((name for name in _TEXT_NAMES if isinstance(given.get(name), str)), None)
    if named is None:
        raise SyscallError(
            "invalid", f"{where}: it has no text; name it one of {', '.join(_TEXT_NAMES)}"
        )
    given["text"] = given.pop(named)
    own = {name: given.pop(name, None) for name in Record._fields if name != "note"}
    fields = {name: item for name, item in given.items() if name in _NOTE_FIELDS}
    others = {name: item for name, item in given.items() if name not in _NOTE_FIELDS}
    metadata = fields.get("metadata", {})
    if isinstance(metadata, dict):
        fields["metadata"] = {**others, **metadata}
    if "source" not in fields and isinstance(fields["metadata"].get("source"), str):
        fields["source"] = fields["metadata"]["source"]
    if not isinstance(own["id"], int):
        own["id"] = None  # another's ids may be words; nothing here can refer to them
    own["vector"] = _vector(own["vector"], where)
    try:
        return Record(Note.model_validate(fields), **own)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SyscallError("invalid", f"{where}: {field}: {first['msg']}", field=field) from problem


def _vector(value: Any, where: str) -> Sequence[float] | None:
    if not isinstance(value, str):
        return value
    try:
        packed = base64.b64decode(value, validate=True)
        return np.frombuffer(packed, dtype="<f4").tolist()
    except ValueError as problem:
        raise SyscallError(
            "invalid", f"{where}: its vector is not base64 of 4-byte floats", field="vector"
        ) from problem


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == BATCH_RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch


def _invalid(path: Path, why: str) -> SyscallError:
    return SyscallError("invalid", f"{path}: {why}", field="path")
