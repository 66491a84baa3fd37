"""What was tuned is kept for one machine and one model file, and nothing else is taken for it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llmos.memory import tuned as tuned_module
from llmos.memory.tuned import Choice, Row, Tuned, fingerprint, keep, recall, this_machine
from llmos.syscalls.errors import SyscallError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(range(256)) * 512)
    return path


def found(source: Path, weights: str = "BF16") -> Tuned:
    choice = Choice.model_validate({"weights": weights, "threads": 3})
    row = Row(choice=choice, bytes=7, prefill=9.5, decode={1: 2.0, 16: 8.0}, cost_ms=1, loss=-0.01)
    return Tuned(
        model="toy",
        machine=this_machine(),
        fingerprint=fingerprint(source),
        choice=choice,
        rows=(row,),
        is_quick=False,
        made=True,
        took_s=1.0,
        tuned_at=0.0,
    )


def test_what_is_kept_comes_back_and_the_newest_counts(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "tuned"
    assert recall(folder, source) is None
    keep(folder, found(source, "F16"))
    path = keep(folder, found(source))
    assert recall(folder, source) == found(source)
    assert list(folder.iterdir()) == [path]


def test_another_model_file_has_a_record_of_its_own(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "tuned"
    keep(folder, found(source))
    source.write_bytes(bytes(range(255, -1, -1)) * 512)  # as large, trained otherwise
    assert recall(folder, source) is None


def test_another_machine_has_a_record_of_its_own(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tuned"
    keep(folder, found(source))
    other = this_machine().model_copy(update={"cores": 64})
    monkeypatch.setattr(tuned_module, "this_machine", lambda: other)
    assert recall(folder, source) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "toy"}', "\x00\xff"])
def test_a_damaged_record_is_ignored_with_a_warning(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = keep(tmp_path / "tuned", found(source))
    path.write_text(text)
    with caplog.at_level(logging.WARNING, "llmos"):
        assert recall(tmp_path / "tuned", source) is None
    assert "cannot be read" in caplog.text


def test_a_record_that_was_copied_from_elsewhere_is_ignored_with_a_warning(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(tmp_path / "tuned", found(source))
    foreign = json.loads(path.read_text())
    foreign["machine"]["cores"] += 1
    path.write_text(json.dumps(foreign))
    with caplog.at_level(logging.WARNING, "llmos"):
        assert recall(tmp_path / "tuned", source) is None
    assert "another machine" in caplog.text


def test_a_missing_model_file_was_never_tuned(tmp_path: Path) -> None:
    assert recall(tmp_path / "tuned", tmp_path / "nowhere.gguf") is None


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path, source: Path) -> None:
    (tmp_path / "tuned").write_text("a file")
    with pytest.raises(SyscallError, match="cannot be kept") as refused:
        keep(tmp_path / "tuned", found(source))
    assert refused.value.code == "storage"
