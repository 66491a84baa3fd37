from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmos.drivers.training.checkpoints import Checkpoints, write_folder
from llmos.syscalls.errors import SyscallError


def test_the_last_checkpoint_and_the_best_one_are_kept_and_no_others(tmp_path: Path) -> None:
    import torch

    kept = Checkpoints(tmp_path / "checkpoints")
    assert kept.last() is None
    assert kept.last_step() is None
    for step in (5, 10, 15):
        kept.save(step, {"w": torch.full((3,), float(step))}, {"tokens": step})
    kept.save_best(5, {"w": torch.ones(2)}, {"metrics": {"loss": 1.0}})
    kept.save_best(10, {"w": torch.ones(2) * 2}, {"metrics": {"loss": 0.5}})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-15", "best-10"}
    last, best = kept.last(), kept.best()
    assert last is not None and best is not None
    assert (last.step, last.tensors["w"].tolist(), last.notes) == (15, [15.0] * 3, {"tokens": 15})
    assert (best.step, best.notes["metrics"]) == (10, {"loss": 0.5})


def test_what_a_crash_left_half_written_is_not_there(tmp_path: Path) -> None:
    import torch

    kept = Checkpoints(tmp_path)
    kept.save(5, {"w": torch.ones(1)}, {})
    half = tmp_path / ".step-10.partial"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"\\0" * 8)
    assert kept.last_step() == 5
    kept.save(10, {"w": torch.ones(1)}, {})
    assert {path.name for path in tmp_path.iterdir()} == {"step-10"}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from llmos.drivers.training.checkpoints import Checkpoints
from llmos.syscalls.errors import SyscallError
kept = Checkpoints(Path(sys.argv[1]))
kept.save(1, {"w": torch.ones(10)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    kept.save(2, {"w": torch.ones(100_000)}, {})
except SyscallError as error:
    print(error.code, error.fields["step"], kept.last_step(), kept.last().tensors["w"].sum().item())
"""


def test_a_disk_that_takes_no_more_is_an_error_and_the_checkpoint_before_is_whole(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["storage", "2", "1", "10.0"]
    assert {path.name for path in tmp_path.iterdir()} == {"step-1"}


def test_a_checkpoint_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path) -> None:
    import torch

    kept = Checkpoints(tmp_path)
    path = kept.save(5, {"w": torch.ones(1)}, {})
    (path / "tensors.safetensors").write_bytes(b"damaged")
    with pytest.raises(SyscallError) as refused:
        kept.last()
    assert (refused.value.code, refused.value.fields["path"]) == ("storage", str(path))


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "version"
    for content in ("old", "new"):
        write_folder(folder, lambda place, text=content: _write(place, text))
        assert json.loads((folder / "file.json").read_text()) == content
    with pytest.raises(SyscallError, match="broken"):
        write_folder(folder, _fail)
    assert json.loads((folder / "file.json").read_text()) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["version"]


def _write(place: Path, text: str) -> None:
    (place / "file.json").write_text(json.dumps(text))


def _fail(place: Path) -> None:
    (place / "file.json").write_text("half")
    raise OSError("broken")
