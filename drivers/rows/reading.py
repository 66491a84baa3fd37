"""Reading training rows: from a data file to checked rows of an objective.

Owns the way from file to rows. The forms of files are in `records.py`, those of rows in `forms.py`.
"""

from __future__ import annotations

from pathlib import Path

from llmos.drivers.rows.forms import row_of
from llmos.drivers.rows.kinds import Row
from llmos.drivers.rows.problems import refused_file
from llmos.drivers.rows.records import Record, read_records
from llmos.syscalls.errors import SyscallError


def read_rows(
    path: Path, objective: str, *, name: str | None = None, group_field: str | None = None
) -> list[Row]:
    """Read and check the rows of a data file; blank ones are passed over.

    `name` is what errors and origins call the file; without one they count rows. `group_field` is
    the field whose rows of equal value belong together. Raises: SyscallError: "not_found",
    "storage", or "invalid" with the file, line and field of the first thing that is wrong.
    """
    rows, problems = read_and_check(path, objective, name=name, group_field=group_field, most=1)
    if problems:
        raise problems[0]
    return rows


def read_and_check(
    path: Path,
    objective: str,
    *,
    name: str | None = None,
    group_field: str | None = None,
    most: int = 100,
) -> tuple[list[Row], list[SyscallError]]:
    """The rows that are right, and what is wrong with the others; stops after `most` problems.

    Raises: SyscallError when the file as a whole cannot be read or holds no rows.
    """
    rows: list[Row] = []
    problems: list[SyscallError] = []
    for record in read_records(path, name=name):
        try:
            rows.append(row_of(_sound(record), objective, group_field=group_field))
        except SyscallError as problem:
            if problem.fields.get("field") == "objective":
                raise
            problems.append(problem)
            if len(problems) >= most:
                break
    if not rows and not problems:
        raise refused_file(name or "the list", "holds no rows")
    return rows, problems


def _sound(record: Record | SyscallError) -> Record:
    if isinstance(record, SyscallError):
        raise record
    return record
