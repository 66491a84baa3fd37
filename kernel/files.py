"""Files of processes: a home each, shared folders by capability, a table of descriptors.

Paths are resolved (symbolic links too) before they are checked. This does not protect against
somebody outside the kernel who swaps a folder for a link between the check and the open.
Event-loop thread only; reads and writes are bounded pieces on local disks.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llmos.kernel.process import Process
from llmos.kernel.streams import Console, Pipe
from llmos.kernel.waits import Waits
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Data, FileInfo, Files, Opened, Written

_FIRST_FD = 3
_MAX_OPEN_FILES = 256
_MAX_LISTED = 10_000


@dataclass(slots=True)
class OpenFile:
    path: Path
    stream: FileIO
    size_bytes: int


class FileSystem:
    def __init__(self, homes: Path, waits: Waits) -> None:
        self._homes = homes
        self._waits = waits

    def open(self, process: Process, call: calls.Open) -> Opened:
        """Open a file of the home or of a shared folder."""
        is_writing = call.mode != "r"
        path = self._resolve(process, call.path, is_writing=is_writing)
        if path.is_fifo():  # opening it would wait for the other side, and the kernel with it
            raise SyscallError("invalid", f"path: {call.path} is a named pipe", field="path")
        if process.files is None:
            process.files = {}
        if len(process.files) >= _MAX_OPEN_FILES:
            raise SyscallError(
                "busy", f"{_MAX_OPEN_FILES} files are open; close some", limit=_MAX_OPEN_FILES
            )
        try:
            if is_writing:
                path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open(call.mode + "b", buffering=0)
        except OSError as problem:
            raise _refused(problem, path, call.path) from problem
        fd = next(
            n for n in range(_FIRST_FD, _FIRST_FD + _MAX_OPEN_FILES) if n not in process.files
        )
        process.files[fd] = OpenFile(path, stream, path.stat().st_size)
        return Opened(fd=fd)

    async def read(self, process: Process, call: calls.Read) -> Data:
        """Read from standard input or a file."""
        if call.fd == 0:
            if process.stdin is None:
                return Data(data=b"", is_eof=True)
            return await process.stdin.read(process, self._waits, call.max_bytes)
        file = self._file(process, call.fd)
        try:
            data = file.stream.read(call.max_bytes)
        except (OSError, ValueError) as problem:
            raise _refused(problem, file.path, str(file.path)) from problem
        return Data(data=data, is_eof=len(data) < call.max_bytes)

    async def write(self, process: Process, call: calls.Write) -> Written:
        """Write to standard output or a file; nothing stays in a buffer of ours."""
        if call.fd == 1:
            if isinstance(process.stdout, Console):
                return Written(bytes=process.stdout.write(call.data))
            written = await process.stdout.write(process, self._waits, call.data)
            return Written(bytes=written)
        file = self._file(process, call.fd)
        try:
            view = memoryview(call.data)
            while view:
                view = view[file.stream.write(view) or 0 :]
        except (OSError, ValueError) as problem:
            raise _refused(problem, file.path, str(file.path)) from problem
        return Written(bytes=len(call.data))

    def close(self, process: Process, fd: int) -> None:
        """Close a descriptor; 0 and 1 end the standard streams."""
        if fd == 1:
            process.stdout.close_write()
            return
        if fd == 0:
            if process.stdin is not None:
                process.stdin.close_read()
            return
        file = self._file(process, fd)
        assert process.files is not None
        del process.files[fd]
        file.stream.close()

    def list(self, process: Process, call: calls.List) -> Files:
        """A folder's entries, sorted; paths are as they can be passed to `Open`."""
        folder = self._resolve(process, call.path, is_writing=False)
        if folder == process.home:
            folder.mkdir(parents=True, exist_ok=True)
        base = None if Path(call.path).is_absolute() else self.home(process)
        found: list[FileInfo] = []
        try:
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder))
            entries = folder.rglob("*") if call.is_recursive else folder.iterdir()
            for entry in entries:
                is_folder = entry.is_dir()
                if is_folder and call.is_recursive:
                    continue
                shown = entry.relative_to(base) if base is not None else entry
                size = 0 if is_folder else entry.lstat().st_size
                found.append(FileInfo(path=str(shown), is_folder=is_folder, bytes=size))
                if len(found) > _MAX_LISTED:
                    raise SyscallError(
                        "invalid",
                        f"path: {call.path} holds more than {_MAX_LISTED} entries; "
                        "list a folder below it",
                        field="path",
                    )
        except OSError as problem:
            raise _refused(problem, folder, call.path) from problem
        return Files(files=tuple(sorted(found, key=lambda file: file.path)))

    def readable(self, process: Process, path: str) -> Path:
        """Where a path leads that the process may read.

        Raises: SyscallError("denied"), or ("not_found") when no file is there.
        """
        found = self._resolve(process, path, is_writing=False)
        if not found.is_file():
            raise SyscallError("not_found", f"there is no file {path}", what="file", name=path)
        return found

    def readable_path(self, process: Process, path: str) -> Path:
        """Where a path leads, a file's or a folder's, that the process may read.

        Raises: SyscallError("denied").
        """
        return self._resolve(process, path, is_writing=False)

    def writable(self, process: Process, path: str) -> Path:
        """Where a path leads, a file's or a folder's, that the process may write.

        Raises: SyscallError("denied").
        """
        return self._resolve(process, path, is_writing=True)

    def home(self, process: Process) -> Path:
        """The process's home; the folder appears when something is written there."""
        if process.home is None:
            process.home = (self._homes / str(process.pid)).resolve()
        return process.home

    def release(self, process: Process) -> None:
        """The process has ended: close everything it had open."""
        process.stdout.close_write()
        if process.stdin is not None:
            process.stdin.close_read()
        for file in (process.files or {}).values():
            file.stream.close()
        process.files = None

    def _resolve(self, process: Process, path: str, *, is_writing: bool) -> Path:
        if "\0" in path:
            raise SyscallError("invalid", "path: it holds a NUL byte", field="path")
        home = self.home(process)
        target = (home / path).resolve()
        if target.is_relative_to(home):
            return target
        rights = process.capabilities
        folders = rights.folders_write if is_writing else rights.folders_read | rights.folders_write
        for folder in folders:
            if folder == "*" or target.is_relative_to(Path(folder).resolve()):
                return target
        field = "folders_write" if is_writing else "folders_read"
        raise SyscallError(
            "denied",
            f"{path} is outside the process's home and no folder shared with it holds it; "
            f"spawn it with Capabilities({field}={{...}})",
            capability=f"{field}:{target.parent}",
        )

    def _file(self, process: Process, fd: int) -> OpenFile:
        file = (process.files or {}).get(fd)
        if file is None:
            raise SyscallError(
                "not_found", f"descriptor {fd} is not open", what="descriptor", name=fd
            )
        return file


def attach_pipe(source: Process, reader: int, *, capacity_bytes: int) -> Pipe:
    """Lead a process's standard output into a pipe for `reader`; what it wrote before comes first.

    Raises: SyscallError("busy") when its output is led elsewhere already.
    """
    if isinstance(source.stdout, Pipe):
        raise SyscallError(
            "busy", f"the standard output of process {source.pid} already feeds another process"
        )
    pipe = Pipe(capacity_bytes=capacity_bytes, writer=source.pid, reader=reader)
    pipe.prefill(source.stdout.kept())
    source.stdout.close_write()
    if source.is_over:
        pipe.close_write()
    source.stdout = pipe
    return pipe


def _refused(problem: Exception, path: Path, asked: str) -> SyscallError:
    if isinstance(problem, FileNotFoundError):
        return SyscallError("not_found", f"there is no file {asked}", what="file", name=asked)
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SyscallError(
            "storage",
            f"no room left to write {asked}: free some disk space and retry",
            is_retryable=True,
            path=str(path),
        )
    reason = problem.strerror if isinstance(problem, OSError) else str(problem)
    return SyscallError("storage", f"{asked}: {reason}", path=str(path))
