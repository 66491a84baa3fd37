"""What is wrong with a row or a file, as errors that name the place."""

from __future__ import annotations

from llmos.syscalls.errors import SyscallError


def refused(origin: str, field: str, why: str) -> SyscallError:
    """A row's field is wrong: "FILE:LINE: FIELD: WHY"."""
    return SyscallError("invalid", f"{origin}: {field}: {why}", field=field, origin=origin)


def refused_file(shown: str, why: str) -> SyscallError:
    """A data file as a whole cannot be used."""
    return SyscallError("invalid", f"data: {shown}: {why}", field="data", origin=shown)
