"""Task models over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from llmos.agents.handle import OS
from llmos.booting import boot
from llmos.cli import app
from llmos.config import load_config
from llmos.drivers.contract import Allocation
from llmos.drivers.task_folder import HEADS, TaskHead, write_settings
from llmos.kernel.kernel import Kernel
from llmos.server import create_app
from llmos.syscalls.learning_results import ModelVersion

CLASSES = TaskHead("mood", "classify", ("glad", "sad"))
NAMES = TaskHead("names", "tag", ("O", "B-name", "I-name"))


class Moods:
    """Finds texts with an exclamation mark glad, and capitalised words names."""

    heads = (CLASSES, NAMES)
    max_length_tokens = 50
    batch_tokens = 200

    def count(self, text: str | Sequence[str]) -> int:
        return len(text.split() if isinstance(text, str) else text)

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        return CLASSES.labels

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[list[float]]:
        return [[0.75, 0.25] if "!" in text else [0.125, 0.875] for text in texts]

    def tag(
        self, sentences: Sequence[Sequence[str]], *, task: str | None = None
    ) -> list[list[tuple[str, float]]]:
        return [
            [("B-name", 0.5) if word[0].isupper() else ("O", 1.0) for word in words]
            for words in sentences
        ]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("LLMOS_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "llmos.toml").write_text('home = "state"\n')
    monkeypatch.setattr("llmos.booting.open_task_model", lambda folder, base, device: Moods())


def promote(kernel: Kernel) -> None:
    """A version that serves under the name `moods`."""
    folder = Path("made")
    (folder / "body").mkdir(parents=True)
    write_settings(folder, method="full", base="minilm", max_length_tokens=50, heads=Moods.heads)
    for file in (folder / HEADS, folder / "body" / "model.safetensors"):
        file.write_bytes(b"weights")
    registry = kernel.registry()
    registry.add(
        ModelVersion(name="moods-1", kind="task", base="minilm", path=str(folder), slot="moods")
    )
    registry.promote("moods-1")


def asked(*requests: tuple[str, Any]) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        async with boot(load_config()) as kernel:
            promote(kernel)
            transport = httpx.ASGITransport(create_app(kernel))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return [await client.post(path, json=body) for path, body in requests]

    return asyncio.run(scenario())


def test_texts_are_classified_over_http() -> None:
    one, many = asked(
        ("/v1/classify", {"model": "moods", "input": "hurray!"}),
        ("/v1/classify", {"model": "moods-1", "input": ["a", "b!"], "top_k": 1}),
    )
    assert one.json() == {
        "object": "list",
        "model": "moods-1",
        "data": [
            {
                "object": "classification",
                "index": 0,
                "label": "glad",
                "labels": [
                    {"label": "glad", "probability": 0.75},
                    {"label": "sad", "probability": 0.25},
                ],
            }
        ],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    assert [entry["label"] for entry in many.json()["data"]] == ["sad", "glad"]
    assert [len(entry["labels"]) for entry in many.json()["data"]] == [1, 1]


def test_texts_and_words_are_tagged_over_http() -> None:
    body = {"model": "moods", "input": ["saw Ann", ["Bo", "left"]], "task": "names"}
    (answer,) = asked(("/v1/tag", body))
    text, words = answer.json()["data"]
    assert text["entities"] == [
        {"text": "Ann", "label": "name", "start": 4, "end": 7, "score": 0.5}
    ]
    assert (words["text"], words["words"]) == ("Bo left", ["Bo", "left"])
    assert words["tags"] == ["B-name", "O"]


def test_what_is_wrong_in_a_request_is_named() -> None:
    unknown, blank, extra, empty = asked(
        ("/v1/classify", {"model": "no", "input": "a"}),
        ("/v1/classify", {"model": "moods", "input": ["a", " "]}),
        ("/v1/tag", {"model": "moods", "input": "a", "colour": 1}),
        ("/v1/tag", {"model": "moods", "input": []}),
    )
    assert unknown.status_code == 404
    assert (blank.status_code, blank.json()["error"]["param"]) == (400, "texts.1")
    assert (extra.status_code, extra.json()["error"]["param"]) == (400, "colour")
    assert empty.status_code == 400


def llmos(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input, catch_exceptions=False)


@pytest.fixture
def promoted() -> None:
    async def scenario() -> None:
        async with boot(load_config()) as kernel:
            promote(kernel)

    asyncio.run(scenario())


@pytest.mark.usefixtures("promoted")
def test_texts_of_the_command_line_and_of_standard_input_are_labelled() -> None:
    shown = llmos("classify", "moods", "hurray!", "alas", "--top", "2")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.stdout.splitlines() if "0." in line] == [
        "glad",
        "sad",
        "sad",
        "glad",
    ]
    said = llmos("classify", "moods", "--json", input="hurray!\n\nalas\n")
    assert [one[0]["label"] for one in json.loads(said.stdout)["labels"]] == ["glad", "sad"]
    found = llmos("tag", "moods", "I saw Ann", "--task", "names")
    assert "Ann" in found.stdout and "6-9" in found.stdout


@pytest.mark.usefixtures("promoted")
def test_the_shell_has_the_words_too() -> None:
    shown = llmos("shell", "-c", "classify moods alas, again")
    assert shown.exit_code == 0, shown.output
    assert "sad" in shown.stdout and "alas, again" in shown.stdout
    assert "usage: tag MODEL TEXT..." in llmos("shell", "-c", "tag moods").output


@pytest.mark.usefixtures("promoted")
@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["classify", "none", "a"], 4, "none"),
        (["classify", "moods"], 2, "standard input"),
        (["tag", "moods", "a", "--task", "mood"], 1, "trained to classify"),
    ],
)
def test_what_cannot_be_labelled_is_one_line(arguments: list[str], status: int, word: str) -> None:
    done = llmos(*arguments, input="")
    assert (done.exit_code, done.output.count("\n")) == (status, 1), done.output
    assert word in done.output


def test_the_blocking_face_labels_texts() -> None:
    from llmos import sync

    with sync.boot(load_config()) as kernel:
        promote(kernel.kernel)
        assert kernel.classify("hurray!", "moods").labels[0][0].label == "glad"
        assert kernel.tag("Ann", "moods", task="names").texts[0].entities[0].label == "name"


def test_a_program_labels_by_its_handle() -> None:
    async def program(os: OS, text: str) -> str:
        return (await os.classify(text, "moods", top_k=1)).labels[0][0].label

    async def scenario() -> None:
        async with boot(load_config()) as kernel:
            promote(kernel)
            pid = await kernel.os.spawn(program, "alas")
            assert (await kernel.os.wait(pid)).value == "sad"

    asyncio.run(scenario())


@pytest.mark.model
def test_a_real_encoder_says_under_the_kernel_what_it_says_alone(
    tmp_path: Path, minilm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmos.drivers import encoder_net
    from llmos.drivers.opening import open_task_model

    monkeypatch.setattr("llmos.booting.open_task_model", open_task_model)
    folder = tmp_path / "made"
    folder.mkdir()
    write_settings(folder, method="lora", base="minilm", max_length_tokens=16, heads=Moods.heads)
    network = encoder_net.new_network(encoder_net.load_body(minilm_path, device="cpu"), Moods.heads)
    encoder_net.save_heads(network, folder)
    texts = ["glad", "a longer text than that " * 5, "sad ones"]
    alone = open_task_model(folder, minilm_path, device="cpu")
    expected = alone.classify(texts)

    async def scenario() -> None:
        async with boot(load_config()) as kernel:
            kernel.registry().add(
                ModelVersion(name="m", kind="task", base="minilm", path=str(folder))
            )
            asks = [kernel.os.classify(text, "m") for text in texts]
            for answer, row in zip(await asyncio.gather(*asks), expected, strict=True):
                found = {one.label: one.probability for one in answer.labels[0]}
                assert [found[label] for label in CLASSES.labels] == pytest.approx(row, abs=1e-5)
            assert (await kernel.os.classify(texts[1], "m")).tokens == 16
            (tagged,) = (await kernel.os.tag("Ann is in Oslo.", "m", task="names")).texts
            assert tagged.words == ("Ann", "is", "in", "Oslo", ".")
            owners = {one.owner for one in (await kernel.os.stat()).ledger}
            assert "m" in owners

    asyncio.run(scenario())
