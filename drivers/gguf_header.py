"""The header of a GGUF file: its metadata and the sizes of its tensors.

Reads only the header, with bounds on everything that it reads: tens of milliseconds, where the
`gguf` package's reader builds an array per vocabulary entry and takes seconds. Refuses to know the
meaning of a key. Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


class DamagedFile(Exception):
    """The file is not what its name or header says; the message tells how."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself; of an array, `metadata` holds the length only."""

    metadata: dict[str, Any]
    tensors: int
    parameters: int


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file whose tensors are all there.

    Raises: DamagedFile when it is no GGUF file or shorter than its header says; OSError.
    """
    if path.stat().st_size < 24:
        raise DamagedFile(f"{path.name} is too short to be a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if data[:4] != b"GGUF":
            raise DamagedFile(f"{path.name} is no GGUF file: it does not begin with GGUF")
        try:
            return _read(cursor, path)
        except (struct.error, UnicodeDecodeError, KeyError) as problem:
            raise DamagedFile(
                f"{path.name} is damaged or cut short: its header ends at byte {cursor.at}"
            ) from problem


class _Cursor:
    """A position in the file and how to read what stands there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 4

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length: int = self.scalar("Q")
        raw = self.data[self.at : self.at + length]
        if len(raw) < length:
            raise struct.error("a string runs past the end of the file")
        self.at += length
        return raw.decode()

    def skip_texts(self, count: int) -> None:
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at

    def value(self, kind: int) -> Any:
        """A metadata value; an array gives its length."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        element: int = self.scalar("I")
        count: int = self.scalar("Q")
        if element == _STRING:
            self.skip_texts(count)
        elif element == _ARRAY:
            for _ in range(count):
                self.value(_ARRAY)
        else:
            self.at += count * struct.calcsize(f"<{_SCALARS[element]}")
        return count


def _read(cursor: _Cursor, path: Path) -> GgufHeader:
    version: int = cursor.scalar("I")
    if version not in (2, 3):
        raise DamagedFile(f"{path.name} has GGUF version {version}; 2 and 3 can be read")
    tensors: int = cursor.scalar("Q")
    entries: int = cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    parameters, data_bytes = 0, 0
    for _ in range(tensors):
        cursor.text()
        shape = [int(cursor.scalar("Q")) for _ in range(cursor.scalar("I"))]
        kind: int = cursor.scalar("I")
        offset: int = cursor.scalar("Q")
        parameters += math.prod(shape)
        data_bytes = max(data_bytes, offset + _tensor_bytes(math.prod(shape), kind))
    alignment = int(metadata.get("general.alignment", 32))
    needed = cursor.at + -cursor.at % alignment + data_bytes
    has = path.stat().st_size
    if has < needed:
        raise DamagedFile(f"{path.name} is cut short: {has:,} bytes of {needed:,}")
    return GgufHeader(metadata=metadata, tensors=tensors, parameters=parameters)


def _tensor_bytes(elements: int, kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return elements // block * block_bytes
