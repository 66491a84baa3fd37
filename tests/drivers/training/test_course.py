from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.splits import split
from llmos.drivers.training.course import run_training
from llmos.drivers.training.job import EvaluateJob, TrainJob
from llmos.drivers.training.scoring import run_evaluation
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.recipe import ReplaySpec


def changed(job: TrainJob, **settings: Any) -> TrainJob:
    return TrainJob.model_validate({**job.model_dump(), **settings})


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_run_tells_its_story_and_lowers_the_held_out_loss(job: TrainJob, events: Any) -> None:
    run_training(job, events)
    (start,) = events.of("start")
    assert (start["rows"], start["train_rows"], start["eval_rows"]) == (12, 9, 3)
    assert (start["truncated"], start["skipped"], start["kind"]) == (0, 0, "adapter")
    assert start["data_hashes"] == {job.data: start["data_sha256"]}
    progress = events.of("progress")
    assert [one["step"] for one in progress] == list(range(1, start["steps"] + 1))
    assert all(one["eta_s"] >= 0 and one["tokens_per_s"] > 0 for one in progress)
    assert {one["padding_share"] for one in progress} == {0.0}
    told = events.of("eval")
    assert [one["when"] for one in told] == ["before", *["during"] * 9, "after"]
    assert told[-1]["loss"] < told[0]["loss"] - 0.3
    done = events[-1]
    assert (done["event"], done["tokens"]) == ("done", progress[-1]["tokens"])
    best = min(told[1:], key=lambda one: one["loss"])
    assert told[-1]["loss"] == best["loss"]
    assert done["best_step"] == told[-1]["step"]


def test_a_version_on_disk_measures_as_it_did_in_training(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    run_training(job, events)
    rows = read_rows(Path(job.data), "instruct")
    held_out = split(rows, eval_share=job.eval_share, seed=job.seed).dev
    data = write(
        tmp_path / "held_out.jsonl",
        *({"messages": [m.model_dump(mode="json") for m in row.messages]} for row in held_out),
    )
    before, *_, after = events.of("eval")
    for version, expected in ((None, before), (job.output, after)):
        told = type(events)()
        kind = None if version is None else "adapter"
        scored = EvaluateJob(base=job.base, data=data, version=version, version_kind=kind)
        run_evaluation(scored, told)
        assert told.of("eval")[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert {path.name for path in Path(job.output).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_checkpoints_come_at_their_steps_and_at_the_end(job: TrainJob, events: Any) -> None:
    run_training(changed(job, checkpoint_steps=2, max_steps=5), events)
    assert [one["step"] for one in events.of("checkpoint")] == [2, 4, 5]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_which_then_goes_on_from_the_one_before(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    settings = {"checkpoint_steps": 2, "max_steps": 6, "dropout": 0.1}
    undisturbed = changed(job, **settings, output=str(tmp_path / "undisturbed" / "version"))
    run_training(undisturbed, type(events)())
    stopped = changed(job, **settings, output=str(tmp_path / "stopped" / "version"))
    in_the_way = stopped.checkpoints / ".step-4.partial"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("where the checkpoint is to be written")
    with pytest.raises(SyscallError, match="the one before is kept") as failed:
        run_training(stopped, events)
    assert (failed.value.code, failed.value.fields["step"]) == ("storage", 4)
    in_the_way.unlink()
    again = type(events)()
    run_training(stopped, again)
    assert again.of("resumed")[0]["step"] == 2
    weights = [
        (Path(one.output) / "adapter_model.safetensors").read_bytes()
        for one in (undisturbed, stopped)
    ]
    assert weights[0] == weights[1]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint(
    job: TrainJob, events: Any
) -> None:
    diverging = changed(job, learning_rate=1e30, checkpoint_steps=1, eval_share=0.0)
    with pytest.raises(SyscallError, match="training stopped at step") as stopped:
        run_training(diverging, events)
    assert stopped.value.code == "failed"
    kept = events.of("checkpoint")
    assert kept
    assert Path(kept[-1]["path"]).exists()


def test_patience_ends_a_run_whose_scores_do_not_get_better(job: TrainJob, events: Any) -> None:
    run_training(changed(job, learning_rate=0.3, patience=2, eval_steps=1), events)
    steps = len(events.of("progress"))
    assert steps < events.of("start")[0]["steps"]
    assert steps == events[-1]["best_step"] + 2
    losses = [one["loss"] for one in events.of("eval")[1:]]
    assert losses[-1] == min(losses)


def test_rows_that_were_cut_or_left_out_are_counted_and_named(job: TrainJob, events: Any) -> None:
    with Path(job.data).open("a", encoding="utf-8") as file:
        for prompt, completion in (("long answer", "a" * 200), ("long prompt" * 30, "b")):
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    run_training(changed(job, max_length_tokens=64, eval_share=0.0, max_steps=1), events)
    (start,) = events.of("start")
    assert (start["rows"], start["train_rows"]) == (14, 13)
    assert (start["truncated"], start["truncated_rows"]) == (1, ("rows.jsonl:13",))
    assert (start["skipped"], start["skipped_rows"]) == (1, ("rows.jsonl:14",))
    assert not events.of("eval")


def test_rows_that_all_lack_room_for_an_answer_are_refused(job: TrainJob, events: Any) -> None:
    with pytest.raises(SyscallError, match="max_length_tokens") as refused:
        run_training(changed(job, max_length_tokens=16), events)
    assert refused.value.code == "invalid"


def test_a_metric_that_the_objective_has_not_is_refused_with_those_it_has(
    job: TrainJob, events: Any
) -> None:
    with pytest.raises(SyscallError, match="perplexity") as refused:
        run_training(changed(job, metric="accuracy"), events)
    assert refused.value.fields == {"field": "metric"}
    assert not events.of("progress")


@pytest.mark.parametrize("field", ["metric", "patience"])
def test_what_is_about_held_out_rows_needs_some(job: TrainJob, events: Any, field: str) -> None:
    value = "loss" if field == "metric" else 1
    with pytest.raises(SyscallError, match=f"{field}: it is about held-out rows"):
        run_training(changed(job, eval_share=0.0, **{field: value}), events)


def test_test_rows_are_scored_once_by_the_best_weights(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    test_data = write(tmp_path / "test.jsonl", {"prompt": "20", "completion": "even"})
    run_training(changed(job, test_data=test_data, max_steps=2), events)
    (test,) = [one for one in events.of("eval") if one["when"] == "test"]
    assert test["rows"] == 1
    assert set(events.of("start")[0]["data_hashes"]) == {job.data, test_data}


def test_replayed_rows_have_their_share_of_the_training_rows(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    earlier = [
        write(
            tmp_path / f"{name}.jsonl",
            *({"prompt": f"{name}{n}", "completion": "x"} for n in "123456789"),
        )
        for name in "ab"
    ]
    replay = ReplaySpec(share=0.4, paths=tuple(earlier))
    again = changed(job, replay=replay.model_dump(), replay_data=earlier, max_steps=1)
    run_training(again, events)
    assert events.of("start")[0]["train_rows"] == 9 + 6


def test_a_version_that_cannot_be_written_is_a_storage_error(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(SyscallError) as failed:
        run_training(changed(job, output=str(tmp_path / "file" / "version"), max_steps=1), events)
    assert failed.value.code == "storage"


def test_a_job_goes_on_from_a_version_and_its_weights_can_be_averaged(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    run_training(changed(job, max_steps=8), events)
    child = changed(
        job,
        parent=job.output,
        parent_kind="adapter",
        output=str(tmp_path / "child" / "version"),
        max_steps=2,
        average=0.999,
    )
    told = type(events)()
    run_training(child, told)
    before, *_, after = told.of("eval")
    assert before["loss"] == pytest.approx(events.of("eval")[-1]["loss"], rel=1e-5)
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-2)


def test_another_rank_does_not_go_on_from_an_adapter(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    run_training(changed(job, max_steps=1), events)
    child = changed(job, parent=job.output, parent_kind="adapter", rank=4)
    with pytest.raises(SyscallError, match="rank 8"):
        run_training(changed(child, output=str(tmp_path / "child" / "version")), events)


# --- methods and objectives -----------------------------------------------------------------------

KINDS = {
    "full": "full",
    "dora": "full",
    "ia3": "full",
    "lora": "adapter",
    "prompt_tuning": "adapter",
}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_every_method_lowers_the_loss_and_its_version_measures_the_same(
    job: TrainJob, events: Any, tmp_path: Path, method: str
) -> None:
    rate = {"ia3": 0.1, "prompt_tuning": 0.1}.get(method, 1e-2)
    run_training(changed(job, method=method, learning_rate=rate, eval_share=0.0), events)
    losses = [one["loss"] for one in events.of("progress")]
    assert min(losses) < losses[0] - 0.03
    kind = events.of("start")[0]["kind"]
    assert kind == KINDS[method]
    told = type(events)()
    scored = EvaluateJob(base=job.base, data=job.data, version=job.output, version_kind=kind)
    run_evaluation(scored, told)
    assert told.of("eval")[0]["loss"] < losses[0]


def test_a_preferred_answer_becomes_likelier_than_the_other(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    data = write(
        tmp_path / "pairs.jsonl",
        *({"prompt": f"{n}", "chosen": "yes", "rejected": "no"} for n in range(8)),
    )
    prefer = changed(job, objective="prefer", data=data, eval_share=0.25, epochs=20)
    run_training(prefer, events)
    before, *_, after = events.of("eval")
    assert before["loss"] == pytest.approx(0.6931, abs=1e-3)  # nothing preferred yet
    assert after["metrics"]["accuracy"] == 1.0
    assert after["loss"] < before["loss"] - 0.1


def test_preferences_start_from_the_adapter_that_they_go_on_from(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    run_training(changed(job, max_steps=8), events)
    data = write(
        tmp_path / "pairs.jsonl",
        *({"prompt": f"{n}", "chosen": "even", "rejected": "odd"} for n in range(8)),
    )
    child = changed(
        job,
        objective="prefer",
        data=data,
        parent=job.output,
        parent_kind="adapter",
        output=str(tmp_path / "child" / "version"),
        epochs=20,
    )
    told = type(events)()
    run_training(child, told)
    before, *_, after = told.of("eval")
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert told.of("progress")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert after["loss"] < before["loss"] - 0.1


def test_preferences_need_a_method_with_an_adapter(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    data = write(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "yes", "rejected": "no"})
    full = changed(job, objective="prefer", method="full", data=data, eval_share=0.0)
    with pytest.raises(SyscallError, match="full has none") as refused:
        run_training(full, events)
    assert refused.value.code == "not_available"


TEXT = "the cat sat on the mat and the dog sat on the log. "


@pytest.mark.parametrize("is_new", [True, False])
def test_text_is_learnt_by_a_new_model_and_by_a_known_one(
    job: TrainJob, events: Any, tmp_path: Path, is_new: bool
) -> None:
    data = write(tmp_path / "text.jsonl", *({"text": TEXT * 5 + str(n)} for n in range(10)))
    scratch = {"vocabulary": 300, "width": 32, "layers": 2, "heads": 2} if is_new else None
    text = changed(
        job,
        objective="pretrain",
        method="full",
        data=data,
        max_length_tokens=64,
        scratch=scratch,
        learning_rate=3e-3,
        base="" if is_new else job.base,
        epochs=3,
    )
    run_training(text, events)
    before, *_, after = events.of("eval")
    assert after["loss"] < before["loss"] - 0.5
    assert after["metrics"]["perplexity"] < before["metrics"]["perplexity"]
    assert (Path(job.output) / "tokenizer.json").exists()


def test_personal_data_is_taken_out_of_the_rows_and_counted(
    job: TrainJob, events: Any, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"{i} {i}", "completion": "ask ann@example.org" if i % 2 else "ask 10.0.0.1"}
        for i in range(12)
    ]
    data = write(tmp_path / "personal.jsonl", *rows)
    run_training(changed(job, data=data, redact=True, max_steps=1), events)
    (start,) = events.of("start")
    assert start["redacted"] == {"email": 6, "ip": 6}
