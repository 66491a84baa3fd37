from __future__ import annotations

from pathlib import Path

import pytest

from llmos.drivers.training.job import TrainJob, read_job
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import Example, Finetune
from llmos.syscalls.recipe import Recipe


def test_a_job_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    job = TrainJob(base="b", data="d", output="o", freeze=("embeddings",), layer_decay=0.9)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    assert read_job(path) == job


@pytest.mark.parametrize(
    ("field", "nearest"),
    [("learning_rat", "learning_rate"), ("batchsize", "batch_size"), ("epoch", "epochs")],
)
def test_an_unknown_field_is_answered_with_the_nearest_known_one(field: str, nearest: str) -> None:
    with pytest.raises(SyscallError, match=f"no field {field}; the nearest is {nearest}"):
        Finetune.model_validate({"name": "a", "data": "rows.jsonl", field: 1})


def test_an_unknown_field_inside_a_field_is_named_too() -> None:
    with pytest.raises(SyscallError, match=r"replay.*no field shares; the nearest is share"):
        Finetune.model_validate({"name": "a", "data": "x", "replay": {"shares": 0.5}})
    with pytest.raises(SyscallError, match="known: objective"):
        Finetune.model_validate({"name": "a", "data": "x", "zzzzzz": 0.5})


def test_a_call_and_its_job_share_every_field_of_the_recipe() -> None:
    assert set(Recipe.model_fields) <= set(Finetune.model_fields)
    assert set(Recipe.model_fields) <= set(TrainJob.model_fields)


def test_rows_of_a_call_are_examples_or_objects_of_their_objective() -> None:
    said = {"role": "user", "parts": [{"type": "text", "text": "hi"}]}
    call = Finetune.model_validate(
        {"name": "a", "data": [{"messages": [said]}, {"text": "hi", "label": "greeting"}]}
    )
    assert isinstance(call.data[0], Example)
    assert call.data[1] == {"text": "hi", "label": "greeting"}


def test_a_new_models_width_is_an_even_multiple_of_its_heads() -> None:
    with pytest.raises(SyscallError, match="even multiple"):
        Finetune.model_validate({"name": "a", "data": "x", "scratch": {"width": 30, "heads": 4}})
