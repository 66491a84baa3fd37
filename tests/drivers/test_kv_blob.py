"""The header of saved KV state."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.contract import DeviceError
from llmos.drivers.kv_blob import fingerprint, pack, unpack

OWNER = bytes(range(16))


@given(st.integers(0, 2**32 - 1), st.binary(max_size=64))
def test_what_was_packed_is_unpacked(tokens: int, payload: bytes) -> None:
    saved = unpack(pack(OWNER, tokens, payload), OWNER)
    assert saved.tokens == tokens
    assert bytes(saved.payload) == payload


@given(st.binary(max_size=80), st.binary(max_size=16))
def test_no_other_bytes_are_taken_for_a_blob(noise: bytes, payload: bytes) -> None:
    blob = pack(OWNER, 3, payload)
    for other in (noise, blob + b"\0", blob[:-1], b"x" + blob[1:]):
        with pytest.raises(DeviceError, match="saved sequence"):
            unpack(other, OWNER)
    with pytest.raises(DeviceError, match="another driver, model or memory layout"):
        unpack(blob, bytes(16))


def test_fingerprints_tell_files_sizes_and_layouts_apart(tmp_path: Path) -> None:
    path = tmp_path / "model"
    content = bytearray(1_000_000)
    found: set[bytes] = set()
    for change in range(0, 1_000_000, 100_000):
        content[change] = 1
        path.write_bytes(content)
        found.add(fingerprint(path, "layout"))
    path.write_bytes(content + b"\0")
    found.add(fingerprint(path, "layout"))
    found.add(fingerprint(path, "other layout"))
    assert len(found) >= 3
    assert fingerprint(path, "layout") == fingerprint(path, "layout")
    assert all(len(one) == 16 for one in found)
