"""Encoder objectives on a tiny BERT: they learn, what they write serves, bad rows are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.drivers.contract import ModelSpec
from llmos.drivers.embedding import TorchEmbedding
from llmos.drivers.rows.kinds import LabelledRow, PairRow, TaggedRow
from llmos.drivers.task_folder import read_task
from llmos.drivers.task_model import TaskModel
from llmos.drivers.training import classify, contrast, mixture, tag
from llmos.drivers.training.course import run_training
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.task import Built, Item, OfTask
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.recipe import TaskSpec

WORDS = ("alpha", "beta", "gamma")


def labelled(words: Sequence[str] = WORDS, *, count: int = 6) -> list[LabelledRow]:
    return [
        LabelledRow(" ".join([word] * (1 + n % 3)), f"is {word}", f"row {n}-{word}")
        for n in range(count)
        for word in words
    ]


def tagged(count: int = 6) -> list[TaggedRow]:
    return [
        TaggedRow(
            ("alpha", "beta", "gamma")[: 2 + n % 2], ("O", "B-x", "I-x")[: 2 + n % 2], f"row {n}"
        )
        for n in range(count)
    ]


def a_job(tiny_bert: Path, **fields: Any) -> TrainJob:
    return TrainJob.model_validate(
        {"base": str(tiny_bert), "output": "", "method": "full", "max_length_tokens": 16, **fields}
    )


def train(built: Built, items: Sequence[Item], *, steps: int = 40, rate: float = 0.01) -> None:
    weights = [one for one in built.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate)
    built.model.train()
    for _ in range(steps):
        loss, weight = built.task.loss(built.model, items)
        optimizer.zero_grad()
        (loss / weight).backward()
        optimizer.step()


def build_of(
    module: Any, tiny_bert: Path, rows: Sequence[Any], **fields: Any
) -> tuple[Built, tuple[Item, ...]]:
    built: Built = module.build(a_job(tiny_bert, **fields), "cpu", Rows(rows, (), ()))
    return built, built.task.encode(rows).items


# --- what is learnt is written, and serves --------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3"])
def test_a_classifier_learns_and_serves_what_it_learnt(
    tiny_bert: Path, tmp_path: Path, method: str
) -> None:
    rows = labelled()
    built, items = build_of(classify, tiny_bert, rows, method=method, objective="classify")
    train(built, items)
    measured = built.task.evaluate(built.model, items, batch_size=4)
    assert measured.metrics["accuracy"] == 1.0
    built.save(tmp_path)
    served = TaskModel(tmp_path, tiny_bert)
    assert served.labels == ("is alpha", "is beta", "is gamma")
    for row, chances, said in zip(
        rows, served.classify([row.text for row in rows]), measured.predictions, strict=True
    ):
        assert served.labels[chances.index(max(chances))] == row.label
        assert isinstance(said, dict)
        assert max(chances) == pytest.approx(said["probability"], abs=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_tagger_learns_and_serves_what_it_learnt(
    tiny_bert: Path, tmp_path: Path, method: str
) -> None:
    rows = tagged()
    built, items = build_of(tag, tiny_bert, rows, method=method, objective="tag")
    train(built, items)
    assert built.task.evaluate(built.model, items, batch_size=4).metrics["f1"] == 1.0
    built.save(tmp_path)
    found = TaskModel(tmp_path, tiny_bert).tag([row.tokens for row in rows])
    assert [[tag for tag, _ in words] for words in found] == [list(row.tags) for row in rows]


def test_an_embedder_learns_and_opens_as_an_embedding_model(
    tiny_bert: Path, tmp_path: Path
) -> None:
    pairs = [("alpha", "beta beta"), ("gamma", "gamma other")]
    rows = [PairRow(one, other, None, f"row {one}") for one, other in pairs]
    rows.append(PairRow("alpha other", "beta beta", "gamma alpha", "row negative"))
    built, items = build_of(contrast, tiny_bert, rows, objective="embed")
    before = built.task.evaluate(built.model, items, batch_size=2).metrics["mrr"]
    train(built, items)
    after = built.task.evaluate(built.model, items, batch_size=2).metrics["mrr"]
    assert before <= after == 1.0
    built.save(tmp_path)
    model = TorchEmbedding(ModelSpec("trained", tmp_path, threads=1))
    texts, partners = (torch.tensor(model.embed(side)) for side in zip(*pairs, strict=True))
    assert (texts @ partners.T).argmax(dim=1).tolist() == [0, 1]


def test_tasks_of_a_mixture_share_a_body_and_are_scored_each(
    tiny_bert: Path, tmp_path: Path
) -> None:
    rows = [OfTask("kinds", row) for row in labelled()] + [OfTask("names", row) for row in tagged()]
    specs = (
        TaskSpec(name="kinds", data="a", objective="classify"),
        TaskSpec(name="names", data="b", objective="tag", weight=3.0),
    )
    built, items = build_of(mixture, tiny_bert, rows, tasks=specs)
    assert built.shares == pytest.approx({"kinds": 0.5, "names": 0.5})
    assert [item.task for item in items] == [row.task for row in rows]
    train(built, items)
    metrics = built.task.evaluate(built.model, items, batch_size=4).metrics
    assert metrics["kinds.accuracy"] == metrics["names.f1"] == metrics["score"] == 1.0
    built.save(tmp_path)
    served = TaskModel(tmp_path, tiny_bert)
    assert served.tag([["alpha", "beta"]], task="names")[0][1][0] == "B-x"
    assert len(served.classify(["alpha"], task="kinds")[0]) == 3


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "rows"), [(classify, labelled()), (tag, tagged())])
def test_how_a_batch_is_cut_does_not_change_the_step(
    tiny_bert: Path, module: Any, rows: Sequence[Any]
) -> None:
    built, items = build_of(module, tiny_bert, rows)
    built.model.eval()
    whole, weight = built.task.loss(built.model, items)
    parts = [
        built.task.loss(built.model, items[first : first + 2]) for first in range(0, len(items), 2)
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-5)
    assert sum(one for _, one in parts) == weight


def test_a_new_heads_first_weights_find_the_nearest_class(tiny_bert: Path) -> None:
    built, items = build_of(classify, tiny_bert, labelled())
    assert built.task.evaluate(built.model, items, batch_size=4).metrics["accuracy"] > 0.9


def test_higher_temperatures_make_shares_more_equal() -> None:
    rows, weights = {"a": 900, "b": 100}, {"a": 1.0, "b": 1.0}
    assert mixture.shares(rows, weights, temperature=1.0) == {"a": 0.9, "b": 0.1}
    warm = mixture.shares(rows, weights, temperature=2.0)
    assert warm == pytest.approx({"a": 0.75, "b": 0.25})


# --- going on from a version ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then"), [("full", "full"), ("lora", "lora"), ("lora", "full"), ("full", "lora")]
)
def test_a_version_learns_new_labels_and_keeps_its_old_ones(
    tiny_bert: Path, tmp_path: Path, first: str, then: str
) -> None:
    built, items = build_of(classify, tiny_bert, labelled(WORDS[:2]), method=first)
    train(built, items)
    parent, child = tmp_path / "parent", tmp_path / "child"
    built.save(parent)
    again, items = build_of(
        classify,
        tiny_bert,
        labelled(WORDS[1:]),
        method=then,
        parent=str(parent),
        parent_kind="task",
    )
    learnt, kept = (one.model["heads"][0]["linear"].weight for one in (built, again))
    assert kept.shape[0] == 3 and torch.equal(kept[:2], learnt)
    old = again.task.encode(labelled(WORDS[:1])).items
    train(again, (*items, *old))
    again.save(child)
    served = TaskModel(child, tiny_bert)
    assert served.labels == ("is alpha", "is beta", "is gamma")
    found = served.classify(WORDS)
    assert [row.index(max(row)) for row in found] == [0, 1, 2]


def test_a_classifier_can_go_on_from_a_trained_embedder(tiny_bert: Path, tmp_path: Path) -> None:
    pairs = [PairRow("alpha", "beta", None, "1"), PairRow("beta", "gamma", None, "2")]
    embedder, items = build_of(contrast, tiny_bert, pairs, objective="embed")
    train(embedder, items)
    embedder.save(tmp_path)
    built, _ = build_of(classify, tiny_bert, labelled(), parent=str(tmp_path), parent_kind="task")
    trained = embedder.model["body"].state_dict()
    for name, weights in built.model["body"].state_dict().items():
        assert torch.equal(weights, trained[name])


# --- rows that do not fit -------------------------------------------------------------------------


def refusal(act: Callable[[], object]) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        act()
    assert caught.value.code == "invalid"
    return caught.value


def test_one_class_only_is_refused(tiny_bert: Path) -> None:
    error = refusal(lambda: build_of(classify, tiny_bert, labelled(WORDS[:1])))
    assert "all 6 training rows are is alpha" in str(error)
    plain = [TaggedRow(("alpha",), ("O",), "row 1")]
    assert "no" in str(refusal(lambda: build_of(tag, tiny_bert, plain)))
    same = [PairRow(word, "beta", None, word) for word in WORDS]
    assert "nothing to tell apart" in str(refusal(lambda: build_of(contrast, tiny_bert, same)))


def test_a_label_that_training_lacks_is_told_with_its_row(tiny_bert: Path) -> None:
    built, _ = build_of(classify, tiny_bert, labelled(WORDS[:2]))
    error = refusal(lambda: built.task.encode(labelled(WORDS[2:])))
    assert "row 0-gamma" in str(error) and "is gamma" in str(error)
    tagger, _ = build_of(tag, tiny_bert, tagged())
    other = [TaggedRow(("beta",), ("B-y",), "row 9")]
    assert "row 9" in str(refusal(lambda: tagger.task.encode(other)))


def test_a_tag_that_is_not_bio_is_told_with_its_row(tiny_bert: Path) -> None:
    rows = [*tagged(), TaggedRow(("beta",), ("x",), "row 9")]
    assert "row 9" in str(refusal(lambda: build_of(tag, tiny_bert, rows)))


def test_a_row_of_a_megabyte_is_cut_and_counted(tiny_bert: Path) -> None:
    built, _ = build_of(classify, tiny_bert, labelled())
    long = "alpha " * 180_000
    encoded = built.task.encode([LabelledRow(long, "is alpha", "row 1")])
    assert encoded.truncated == ("row 1",)
    assert len(encoded.items[0].tokens) == 16
    tagger, _ = build_of(tag, tiny_bert, tagged())
    words = ("alpha",) * 20_000
    encoded = tagger.task.encode([TaggedRow(words, ("O",) * len(words), "row 2")])
    assert encoded.truncated == ("row 2",)
    measured = tagger.task.evaluate(tagger.model, encoded.items, batch_size=4)
    assert isinstance(measured.predictions[0], dict)
    assert len(measured.predictions[0]["predicted"]) == len(words)


def test_words_of_no_tokens_are_skipped(tiny_bert: Path) -> None:
    tagger, _ = build_of(tag, tiny_bert, tagged())
    encoded = tagger.task.encode([TaggedRow((" ",), ("O",), "row 1")])
    assert encoded.skipped == ("row 1",) and not encoded.items


def test_methods_that_encoders_cannot_learn_by_are_refused(tiny_bert: Path) -> None:
    error = refusal(lambda: build_of(classify, tiny_bert, labelled(), method="prompt_tuning"))
    assert error.fields["field"] == "method"
    specs = (TaskSpec(name="chat", data="a", objective="instruct"),)
    rows = [OfTask("chat", row) for row in labelled()]
    assert "chat is instruct" in str(
        refusal(lambda: build_of(mixture, tiny_bert, rows, tasks=specs))
    )


# --- as a job -----------------------------------------------------------------------------------


def test_a_job_writes_a_task_model_with_its_scores(tiny_bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(
            json.dumps({"text": f"{row.text} {row.origin}", "label": row.label}) + "\n"
            for row in labelled(count=8)
        )
    )
    told: list[dict[str, Any]] = []
    job = a_job(
        tiny_bert,
        objective="classify",
        data=str(data),
        output=str(tmp_path / "version"),
        base_name="tiny",
        eval_share=0.2,
        epochs=3.0,
        learning_rate=0.01,
    )
    run_training(job, lambda event, **fields: told.append({"event": event, **fields}))
    assert told[-1]["event"] == "done"
    scores = [one for one in told if one["event"] == "eval"]
    assert all("accuracy" in one["metrics"] for one in scores)
    found = read_task(tmp_path / "version")
    assert (found.base, found.method, found.layout) == ("tiny", "full", "body")
    assert TaskModel(tmp_path / "version", None).classify(["alpha"])


def test_a_job_of_two_tasks_writes_both_heads(tiny_bert: Path, tmp_path: Path) -> None:
    kinds, names = tmp_path / "kinds.jsonl", tmp_path / "names.jsonl"
    kinds.write_text(
        "".join(
            json.dumps({"text": f"{row.text} {row.origin}", "label": row.label}) + "\n"
            for row in labelled()
        )
    )
    names.write_text(
        "".join(
            json.dumps({"tokens": [*row.tokens, row.origin], "tags": [*row.tags, "O"]}) + "\n"
            for row in tagged()
        )
    )
    told: list[dict[str, Any]] = []
    job = a_job(
        tiny_bert,
        tasks=(
            {"name": "kinds", "data": str(kinds), "objective": "classify"},
            {"name": "names", "data": str(names), "objective": "tag", "weight": 2.0},
        ),
        output=str(tmp_path / "version"),
        eval_share=0.2,
        temperature=2.0,
    )
    run_training(job, lambda event, **fields: told.append({"event": event, **fields}))
    assert told[-1]["event"] == "done"
    (*_, last) = (one["metrics"] for one in told if one["event"] == "eval")
    assert {"score", "kinds.accuracy", "names.f1"} <= set(last)
    assert [head.name for head in read_task(tmp_path / "version").heads] == ["kinds", "names"]
