"""The form of saved KV state: a header that says whose it is, and the device's own bytes.

Owns the header. What follows it only the driver that wrote it can read, so a blob of another
driver, model or layout is refused before the device sees it. Protects against mix-ups and cut
files, not against bytes changed on purpose: keep blobs where only the kernel writes.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, NamedTuple

from llmos.drivers.contract import DeviceError

_MAGIC = b"llmosKV1"
_HEADER = struct.Struct("<8s16sIQ")  # magic, fingerprint, tokens, payload bytes
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class Saved(NamedTuple):
    """An opened blob: how many tokens it holds, and the device's bytes without a copy."""

    tokens: int
    payload: memoryview


def pack(fingerprint: bytes, tokens: int, payload: Any) -> bytes:
    """A blob of `tokens` tokens; `payload` is bytes or anything with a buffer of them."""
    view = memoryview(payload).cast("B")
    return b"".join((_HEADER.pack(_MAGIC, fingerprint, tokens, view.nbytes), view))


def unpack(blob: bytes, fingerprint: bytes) -> Saved:
    """Open a blob. Raises: DeviceError when it is not whole or not of this model and layout."""
    if len(blob) < _HEADER.size:
        raise DeviceError("this is no saved sequence: it is shorter than a header")
    magic, owner, tokens, payload_bytes = _HEADER.unpack_from(blob)
    if magic != _MAGIC:
        raise DeviceError("this is no saved sequence of this version")
    if owner != fingerprint:
        raise DeviceError("the saved sequence is of another driver, model or memory layout")
    payload = memoryview(blob)[_HEADER.size :]
    if payload.nbytes != payload_bytes:
        raise DeviceError(
            f"the saved sequence is cut: {payload.nbytes} of {payload_bytes} bytes are here"
        )
    return Saved(tokens, payload)


def owner(blob: bytes) -> bytes:
    """The fingerprint of whose state it is. Raises: DeviceError when it is no saved sequence."""
    if len(blob) < _HEADER.size or not blob.startswith(_MAGIC):
        raise DeviceError("this is no saved sequence of this version")
    return _HEADER.unpack_from(blob)[1]


def fingerprint(path: Path, layout: str) -> bytes:
    """16 bytes that tell a model file and a KV layout from others, without reading all of it.

    Reads samples spread over the file: two trainings of one architecture differ everywhere.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{layout}\0{size}".encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(size * sample // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()[:16]
