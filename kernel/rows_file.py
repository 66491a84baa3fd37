"""Rows of a call as a file: where the process may read it, or written for a while.

Owns the way from a call's `data` to a path that a reader takes. Refuses to know what rows mean.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from llmos.kernel.files import FileSystem
from llmos.kernel.process import Process
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import AnyRow


class RowsFile(NamedTuple):
    """A file of rows, and what errors call it; without a name they count rows."""

    path: Path
    name: str | None


Given = RowsFile | tuple[AnyRow, ...]


def given(files: FileSystem, process: Process, data: Sequence[AnyRow] | str) -> Given:
    """A call's rows, its path checked now. Raises: SyscallError as `readable`; "invalid"."""
    if isinstance(data, str):
        return RowsFile(files.readable(process, data), data)
    if not data:
        raise SyscallError("invalid", "data: there are no rows", field="data")
    return tuple(data)


@asynccontextmanager
async def as_file(rows: Given) -> AsyncGenerator[RowsFile]:
    """Rows as a file for this block. Raises: SyscallError("storage")."""
    if isinstance(rows, RowsFile):
        yield rows
        return
    with TemporaryDirectory(prefix="llmos-rows-") as folder:
        path = Path(folder) / "rows.jsonl"
        await asyncio.to_thread(_write, path, rows)
        yield RowsFile(path, None)


def _write(path: Path, rows: Sequence[AnyRow]) -> None:
    lines = [
        json.dumps(row, ensure_ascii=False) if isinstance(row, dict) else row.model_dump_json()
        for row in rows
    ]
    try:
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    except OSError as problem:
        raise SyscallError(
            "storage", f"{path} cannot be written: {problem}", path=str(path)
        ) from problem
