"""Evaluations through the devices that serve: labels, tags, answers, comparisons, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Allocation, EmbeddingInfo, ModelSpec
from llmos.drivers.metrics.predictions import read_predictions
from llmos.drivers.scripted import Scripted
from llmos.drivers.task_folder import TaskHead
from llmos.kernel.kernel import Kernel
from llmos.kernel.label_prompt import Shot, answer_messages, label_messages, spoken
from llmos.kernel.settings import EmbeddingSetting, ModelSetting, TaskSetting
from llmos.syscalls.content import assistant, system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation_results import Evaluated
from llmos.syscalls.learning_results import ModelVersion
from llmos.syscalls.rights import Capabilities

SCRIPT = {
    "one": "short",
    "two words": "short",
    "a text of more words": "long",
    "who": "nobody",
    "where": "here, I think",
}
LENGTHS = [
    {"text": "one", "label": "short"},
    {"text": "two words", "label": "short"},
    {"text": "a text of more words", "label": "long"},
    {"text": "three words here", "label": "long"},
]
NAMES = [
    {"tokens": ["Ann", "ran"], "tags": ["B-name", "O"]},
    {"tokens": ["no", "bob"], "tags": ["O", "B-name"]},
]


class Labels:
    """A task model that says "short" of up to three words, and that capitals are names."""

    heads = (
        TaskHead("length", "classify", ("short", "long")),
        TaskHead("names", "tag", ("O", "B-name", "I-name")),
    )
    max_length_tokens = 50
    batch_tokens = 200

    def __init__(self, folder: Path) -> None:
        self.name = folder.name

    def count(self, text: str | Sequence[str]) -> int:
        return len(text)

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        return self.heads[0].labels

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[list[float]]:
        return [[0.75, 0.25] if len(text.split()) <= 3 else [0.25, 0.75] for text in texts]

    def tag(
        self, sentences: Sequence[Sequence[str]], *, task: str | None = None
    ) -> list[list[tuple[str, float]]]:
        return [
            [("B-name" if word[0].isupper() else "O", 0.75) for word in words]
            for words in sentences
        ]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


class Letters:
    """An embedding by which letters a text has."""

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("letters", "cpu", 26, max_tokens=100, parameters=0, identity="l")

    def count(self, text: str) -> int:
        return len(text)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        rows = [[float(text.count(chr(97 + n))) for n in range(26)] for text in texts]
        sizes = [sum(value * value for value in row) ** 0.5 or 1.0 for row in rows]
        return [[value / size for value in row] for row, size in zip(rows, sizes, strict=True)]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


class Asked(Scripted):
    """A scripted model that keeps what it was asked."""

    def __init__(self, asked: list[str]) -> None:
        def reply(text: str) -> str:
            asked.append(text)
            return SCRIPT.get(text, "?")

        super().__init__(ModelSpec("m", Path("m")), script=reply)


Body = Callable[[Kernel], Any]


@pytest.fixture
def scene(boot_kernel: Any, tmp_path: Path) -> Callable[[Body], Any]:
    """Run a body with a kernel that has a model m, task version t and an embedding."""

    def run(body: Body) -> Any:
        async def scenario() -> Any:
            settings = {
                "models": {"m": ModelSetting("m", "small", "scripted", lambda: Asked([]))},
                "tasks": TaskSetting(lambda folder, base: Labels(folder), 10_000),
                "embedding": EmbeddingSetting(name="letters", dimensions=26, open=Letters),
            }
            async with boot_kernel(**settings) as kernel:
                folder = tmp_path / "trained"
                folder.mkdir()
                (folder / "weights").write_text("w")
                for name, objective in (("t", "classify"), ("e", "tag")):
                    kernel.registry().add(
                        ModelVersion(
                            name=name,
                            kind="task",
                            base="letters",
                            path=str(folder),
                            card={
                                "objective": objective,
                                "curves": {"training": [[1, 2.0], [2, 1.0]]},
                            },
                        )
                    )
                return await body(kernel)

        return asyncio.run(scenario())

    return run


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def test_a_task_model_is_measured_with_its_probabilities(scene: Any) -> None:
    found: Evaluated = scene(lambda kernel: kernel.os.evaluate(LENGTHS, model="t"))

    assert (found.model, found.objective, found.rows) == ("t", "classify", 4)
    assert found.metrics["accuracy"] == 0.75
    assert found.loss is not None
    assert found.metrics["calibration_error"] == pytest.approx(0.0)
    low, high = found.intervals["accuracy"]
    assert low <= 0.75 <= high
    assert found.tables["mistakes"].rows == (("long", "short", 1),)


def test_entities_are_measured_whole(scene: Any) -> None:
    found: Evaluated = scene(lambda kernel: kernel.os.evaluate(NAMES, model="e", task="names"))

    assert found.objective == "tag"
    assert found.metrics["f1"] == pytest.approx(2 / 3)
    assert found.tables["entities"].rows[0][0] == "name"
    assert found.loss is None


def test_a_decoder_labels_by_choosing_among_the_labels(scene: Any) -> None:
    found: Evaluated = scene(
        lambda kernel: kernel.os.evaluate(LENGTHS[:3], model="m", objective="classify")
    )

    assert found.metrics["accuracy"] == 1.0
    assert "calibration_error" not in found.metrics


def test_answers_are_compared_with_the_wanted_ones(scene: Any) -> None:
    rows = [chat("who", "Nobody."), chat("where", "here")]
    found: Evaluated = scene(lambda kernel: kernel.os.evaluate(rows, objective="generate"))

    assert found.model == "m"
    assert found.metrics["exact_match"] == 0.5
    assert found.metrics["rouge_l"] == pytest.approx((1 + 0.5) / 2)


def test_models_are_compared_on_the_same_rows_and_the_report_says_so(
    scene: Any, tmp_path: Path
) -> None:
    async def body(kernel: Kernel) -> Evaluated:
        return await kernel.os.evaluate(LENGTHS[:3], model="t", against=("m",), report=True)

    found: Evaluated = scene(body)

    assert [one.model for one in found.compared] == ["m"]
    assert found.compared[0].changes["accuracy"].value == pytest.approx(0.0)
    assert found.report is not None
    page = Path(found.report)
    assert page.parent.parent == tmp_path / "evaluations"
    assert "On the same rows" in page.read_text(encoding="utf-8")
    assert page.with_name("learning-curve.svg").is_file()
    assert [one.said for one in read_predictions(page.with_name("predictions-1.jsonl"))] == [
        "short",
        "short",
        "long",
    ]


def test_rows_of_a_file_are_drawn_by_the_seed(scene: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LENGTHS))

    async def body(kernel: Kernel) -> list[float]:
        return [
            (await kernel.os.evaluate(str(path), model="t", max_rows=2, seed=seed)).metrics[
                "accuracy"
            ]
            for seed in (0, 0, 1, 2, 3)
        ]

    drawn = scene(body)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": [{"text": "a", "label": "medium"}], "model": "t"}, "does not know the label"),
        ({"data": [], "model": "t"}, "data: there are no rows"),
        ({"data": LENGTHS, "model": "nobody"}, "no version nobody"),
        ({"data": LENGTHS, "model": "m", "max_rows": 1}, "is measured on all rows"),
        ({"data": NAMES, "model": "m", "objective": "tag"}, "entities are found by task models"),
        (
            {"data": LENGTHS, "model": "m", "objective": "classify", "labels": ("short",)},
            "does not know the label 'long'",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(scene: Any, options: Any, says: str) -> None:
    with pytest.raises(SyscallError, match=says):
        scene(lambda kernel: kernel.os.evaluate(**options))


def test_who_may_not_use_a_model_may_not_compare_with_it(scene: Any) -> None:
    async def compares(os: OS) -> None:
        await os.evaluate(LENGTHS, model="t", against=("m",))

    async def body(kernel: Kernel) -> None:
        rights = Capabilities(models=frozenset({"t"}))
        await kernel.os.result(await kernel.os.spawn(compares, capabilities=rights))

    with pytest.raises(SyscallError, match="models:m"):
        scene(body)


# --- few-shot prompting ---------------------------------------------------------------------------


def test_a_prompt_version_labels_by_what_is_nearest(scene: Any) -> None:
    async def body(kernel: Kernel) -> None:
        job = await kernel.os.finetune(
            LENGTHS, "few", method="prompt", objective="classify", shots=2, eval_share=0
        )
        trained = await kernel.os.result(job)
        assert trained["version"]["kind"] == "prompt"
        assert trained["version"]["card"]["labels"] == ["long", "short"]
        said = await kernel.os.classify(["one", "a text of more words"], "few")
        assert [labels[0].label for labels in said.labels] == ["short", "long"]
        found = await kernel.os.evaluate(LENGTHS[:3], model="few")
        assert found.objective == "classify"
        assert found.metrics["accuracy"] == 1.0
        with pytest.raises(SyscallError, match="already"):
            await kernel.os.finetune(LENGTHS, "few", method="prompt", objective="classify")

    scene(body)


def test_examples_are_redacted_and_rows_of_their_own_judge_them(scene: Any, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(LENGTHS[0]))
    rows = [{"text": f"{n} writes to me{n}@example.org", "label": "ab"[n % 2]} for n in range(4)]

    async def body(kernel: Kernel) -> None:
        job = await kernel.os.finetune(
            rows, "few", method="prompt", objective="classify", redact=True, eval_data=str(held_out)
        )
        card = (await kernel.os.result(job))["version"]["card"]
        assert card["data"]["redacted"] == {"email": 4}
        assert card["data"]["examples"] == 4  # none is held out
        hits = await kernel.os.retrieve("writes", namespaces=["prompt:few"], k=4)
        assert {hit.text[1:] for hit in hits} == {" writes to [email]"}

    scene(body)


def test_examples_that_repeat_others_are_left_out(scene: Any) -> None:
    text = "the card was swallowed by the machine at the station"
    rows = [{"text": text + end, "label": "card"} for end in ("", ".", "!")]
    rows.append({"text": "the loan is paid back", "label": "loan"})

    async def body(kernel: Kernel) -> None:
        job = await kernel.os.finetune(
            rows, "few", method="prompt", objective="classify", eval_share=0.5, dedupe=True
        )
        data = (await kernel.os.result(job))["version"]["card"]["data"]
        assert data["dropped"] == {"duplicates": 2, "leaks": 0}
        assert data["examples"] == 1  # and one is held out

    scene(body)


def test_what_would_be_trained_is_no_matter_of_prompting(scene: Any) -> None:
    async def body(kernel: Kernel) -> None:
        await kernel.os.finetune(LENGTHS, "few", method="prompt", objective="classify", average=0.5)

    with pytest.raises(SyscallError, match="average: it is about training"):
        scene(body)


def test_the_examples_of_a_prompt_version_are_deleted_with_it(scene: Any) -> None:
    async def body(kernel: Kernel) -> None:
        job = await kernel.os.finetune(
            LENGTHS, "few", method="prompt", objective="classify", eval_share=0
        )
        await kernel.os.result(job)
        assert (await kernel.os.memory_stat()).items == 4
        await kernel.os.model_delete("few")
        assert (await kernel.os.memory_stat()).items == 0

    scene(body)


def test_without_shots_nothing_is_kept_and_all_labels_are_choices(scene: Any) -> None:
    async def body(kernel: Kernel) -> None:
        job = await kernel.os.finetune(
            LENGTHS, "zero", method="prompt", objective="classify", shots=0, eval_share=0
        )
        version = (await kernel.os.result(job))["version"]
        assert version["card"]["data"]["examples"] == 0
        assert (await kernel.os.memory_stat()).items == 0
        found = await kernel.os.evaluate(LENGTHS[:3], model="zero")
        assert found.metrics["accuracy"] == 1.0
        await kernel.os.model_delete("zero")
        with pytest.raises(SyscallError, match="no version zero"):
            await kernel.os.classify(["one"], "zero")

    scene(body)


def test_examples_stand_before_a_question_that_is_to_be_answered(scene: Any) -> None:
    async def body(kernel: Kernel) -> None:
        rows = [chat("who", "nobody"), chat("zzz", "no")]
        job = await kernel.os.finetune(rows, "shown", method="prompt", shots=1, eval_share=0)
        version = ModelVersion.model_validate((await kernel.os.result(job))["version"])
        messages = await kernel.prompting.shown(version, [user("who")])
        assert [message.text for message in messages] == ["who", "nobody", "who"]
        found = await kernel.os.evaluate(rows[:1], model="shown")
        assert (found.objective, found.metrics["exact_match"]) == ("generate", 1.0)
        with pytest.raises(SyscallError, match="it does not label"):
            await kernel.os.classify(["who"], "shown")
        with pytest.raises(SyscallError, match="has no loss of its own"):
            await kernel.os.evaluate(rows, model="shown", objective="instruct")

    scene(body)


def test_entities_cannot_be_prompted(scene: Any) -> None:
    async def body(kernel: Kernel) -> None:
        await kernel.os.finetune(NAMES, "n", method="prompt", objective="tag")

    with pytest.raises(SyscallError, match="tag cannot be prompted"):
        scene(body)


def test_labels_are_said_in_words_where_that_is_unmistakable() -> None:
    assert spoken(["lost_card", "ok"]) == {"lost card": "lost_card", "ok": "ok"}
    assert spoken(["a_b", "a b"]) == {"a_b": "a_b", "a b": "a b"}


def test_a_prompt_names_the_choices_and_ends_with_the_text() -> None:
    messages = label_messages(
        "hi", spoken(["x_y", "z"]), shots=[Shot("t", "x_y")], instruction="Say."
    )
    assert messages == [system("Say. Labels: x y, z."), user("t"), assistant("x y"), user("hi")]


def test_examples_come_after_what_the_system_says() -> None:
    shown = answer_messages(
        [system("s"), user("q")], shots=[Shot("a", "b")], instruction="not said twice"
    )
    assert shown == [system("s"), user("a"), assistant("b"), user("q")]


def test_weights_that_no_configured_model_has_answer_nothing(scene: Any, tmp_path: Path) -> None:
    """Not the default model in their place."""
    (tmp_path / "weights").write_text("")

    async def body(kernel: Any) -> None:
        kernel.registry().add(
            ModelVersion(name="new", kind="full", base="new", path=str(tmp_path / "weights"))
        )
        await kernel.os.evaluate(LENGTHS, model="new", objective="classify")

    with pytest.raises(SyscallError, match="new generates nothing here"):
        scene(body)
