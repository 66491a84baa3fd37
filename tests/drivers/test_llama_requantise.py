"""Copies of a model in other formats: whole, once, and as good as they should be."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from llmos.drivers import llama_requantise
from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_model import LlamaModel
from llmos.drivers.llama_perplexity import cross_entropy, loss
from llmos.drivers.llama_requantise import BITS, FORMATS, copies, copy_path, requantised, shipped

TEXT = Path(__file__).parents[2] / "llmos" / "tuning_text.md"


@pytest.fixture
def source(smollm2_path: Path, tmp_path: Path) -> Path:
    """The default model in a folder of its own."""
    path = tmp_path / "model.gguf"
    try:
        path.hardlink_to(smollm2_path)
    except OSError:  # the temporary folder is on another disk
        path.symlink_to(smollm2_path)
    return path


def test_every_format_has_its_size() -> None:
    assert set(BITS) == set(FORMATS)


@pytest.mark.parametrize("content", [b"", b"GGUF but not a model, only long enough to be read"])
def test_a_file_that_is_no_model_has_no_copies(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for use in (shipped, lambda path: requantised(path, "F16")):
        with pytest.raises(DeviceError, match=r"model\.gguf"):
            use(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot read"):
        copy_path(tmp_path / "model.gguf", "F16")


@pytest.mark.model
def test_a_wider_copy_keeps_perplexity_and_leaves_nothing_half(source: Path) -> None:
    left = source.with_name(f".{copy_path(source, 'F16').name}.killed")
    left.mkdir()
    (left / "part").write_bytes(b"half a copy")
    other = source.with_name(f".other.F16-{'0' * 16}.gguf.busy")
    other.mkdir()
    assert shipped(source).format == "Q4_1"
    made = requantised(source, "BF16", threads=2)
    assert shipped(made).format == "BF16"
    assert [(copy.format, copy.path) for copy in copies(source)] == [("BF16", made)]
    assert sorted(path.name for path in source.parent.iterdir()) == sorted(
        [other.name, source.name, made.name]
    )
    model = LlamaModel(source)
    tokens = model.tokenize(TEXT.read_text())[:600]
    model.close()
    reference = cross_entropy(source, tokens, threads=2)
    assert 1.5 < reference < 4.5  # a text that the model can read
    assert abs(loss(cross_entropy(made, tokens, threads=2), reference)) < 0.01


@pytest.mark.model
def test_two_that_want_one_copy_make_it_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    make = llama_requantise._make  # pyright: ignore[reportPrivateUsage]

    def count(source: Path, target: Path, *rest: object) -> None:
        made.append(target)
        make(source, target, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(llama_requantise, "_make", count)
    both = [threading.Thread(target=requantised, args=(source, "Q8_0")) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert made == [copy_path(source, "Q8_0")]


@pytest.mark.model
def test_a_disk_that_is_full_is_a_device_error(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**where: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(llama_requantise.tempfile, "TemporaryDirectory", full)
    with pytest.raises(DeviceError, match="cannot be written beside it: No space left"):
        requantised(source, "Q8_0")
    assert copies(source) == ()


@pytest.mark.model
def test_a_text_of_one_token_cannot_be_scored(smollm2_path: Path) -> None:
    with pytest.raises(DeviceError, match="fewer than two"):
        cross_entropy(smollm2_path, [1])
