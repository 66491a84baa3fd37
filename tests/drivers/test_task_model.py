"""Task models: what they say does not depend on the batch, on the window or on who else asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmos.drivers import encoder_net
from llmos.drivers.bio_labels import can_follow
from llmos.drivers.contract import DeviceError
from llmos.drivers.task_folder import BODY, TaskHead, read_task, write_settings
from llmos.drivers.task_model import TaskModel

TEXTS = ["alpha", "beta beta gamma", "gamma alpha " * 40, "alpha beta"]
CLASSES = TaskHead("kinds", "classify", ("one", "two", "three"))
NAMES = TaskHead("names", "tag", ("O", "B-x", "I-x", "B-y", "I-y"), reads_case=True)


def task_folder(tiny_bert: Path, folder: Path, *heads: TaskHead) -> Path:
    """A task model of random weights, its body the base's."""
    folder.mkdir()
    torch.manual_seed(1)
    network = encoder_net.new_network(encoder_net.load_body(tiny_bert, device="cpu"), heads)
    for weights in network["heads"].parameters():
        torch.nn.init.normal_(weights)  # answers that differ
    encoder_net.save_heads(network, folder)
    write_settings(folder, method="full", base="tiny", max_length_tokens=32, heads=heads)
    return folder


def test_probabilities_are_the_same_alone_and_in_a_batch(tiny_bert: Path, tmp_path: Path) -> None:
    model = TaskModel(task_folder(tiny_bert, tmp_path / "task", CLASSES), tiny_bert)
    together = model.classify(TEXTS)
    assert model.labels == ("one", "two", "three")
    for text, row in zip(TEXTS, together, strict=True):
        assert sum(row) == pytest.approx(1.0)
        assert model.classify([text])[0] == pytest.approx(row, abs=1e-5)
    assert model.classify([]) == []


def test_every_word_gets_a_legal_label_however_long_the_sentence(
    tiny_bert: Path, tmp_path: Path
) -> None:
    model = TaskModel(task_folder(tiny_bert, tmp_path / "task", NAMES), tiny_bert)
    sentences = [["alpha"], ["Beta", "GAMMA", "alpha"] * 50, [], ["beta", "\u200b", "alpha"]]
    found = model.tag(sentences)
    assert [len(words) for words in found] == [1, 150, 0, 3]
    for words in found:
        before = None
        for label, probability in words:
            assert can_follow(label, before) and 0.0 < probability <= 1.0
            before = label
    assert model.tag([sentences[0]])[0][0][1] == pytest.approx(found[0][0][1], abs=1e-5)


def test_the_way_a_word_is_written_reaches_the_head(tiny_bert: Path, tmp_path: Path) -> None:
    model = TaskModel(task_folder(tiny_bert, tmp_path / "task", NAMES), tiny_bert)
    written = [model.word_scores([[word]], 0)[0][0] for word in ("beta", "Beta", "BETA")]
    assert written[0] != written[1] != written[2]


def test_a_task_is_chosen_by_its_name(tiny_bert: Path, tmp_path: Path) -> None:
    model = TaskModel(task_folder(tiny_bert, tmp_path / "task", CLASSES, NAMES), tiny_bert)
    assert model.tag([["alpha"]], task="names")
    with pytest.raises(DeviceError, match="no task verbs; it has kinds, names"):
        model.classify(["alpha"], task="verbs")
    with pytest.raises(DeviceError, match="trained to classify, not to tag"):
        model.tag([["alpha"]])


def test_a_closed_model_refuses_work(tiny_bert: Path, tmp_path: Path) -> None:
    model = TaskModel(task_folder(tiny_bert, tmp_path / "task", CLASSES), tiny_bert)
    assert model.allocations()
    model.close()
    assert model.allocations() == []
    with pytest.raises(DeviceError, match="closed"):
        model.classify(TEXTS)


def test_a_damaged_folder_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = task_folder(tiny_bert, tmp_path / "task", CLASSES)
    (folder / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DeviceError, match="damaged"):
        TaskModel(folder, tiny_bert)
    (folder / "task.json").write_text('{"heads": []}')
    with pytest.raises(DeviceError, match="no readable task model"):
        TaskModel(folder, tiny_bert)
    with pytest.raises(DeviceError, match="no readable task model"):
        read_task(tmp_path / "nowhere")


def test_an_adapter_needs_the_folder_of_its_base(tiny_bert: Path, tmp_path: Path) -> None:
    folder = task_folder(tiny_bert, tmp_path / "task", CLASSES)
    with pytest.raises(DeviceError, match="whose folder is not given"):
        TaskModel(folder, None)
    (folder / BODY).mkdir()
    assert read_task(folder).layout == BODY
