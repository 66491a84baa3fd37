"""`llmos data`: check, describe and divide rows; consent and traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmos.cli import app
from llmos.drivers.rows.reading import read_rows
from llmos.memory.episodes import EpisodeStore, Happened, Judgement
from llmos.syscalls.content import assistant, user

HOME = "state"


@pytest.fixture(autouse=True)
def _home(work_folder: Path) -> None:
    (work_folder / "llmos.toml").write_text(f'home = "{HOME}"\n')


def llmos(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)


def said(*arguments: str, status: int = 0) -> Any:
    done = llmos(*arguments, "--json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def labelled(name: str, *rows: tuple[str, str]) -> str:
    Path(name).write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return name


def kept(namespace: str, *answers: tuple[str, float | None]) -> None:
    store = EpisodeStore(Path(HOME))
    for number, (answer, reward) in enumerate(answers, start=1):
        happened = Happened(
            namespace=namespace,
            boot="b",
            pid=number,
            lineage=(number,),
            program="p",
            task="t",
            model="m",
            adapter=None,
            at=0.0,
            messages=(user("Who?"),),
            tools=(),
            answer=assistant(answer),
            finish="stop",
            prompt_tokens=1,
            answer_tokens=1,
        )
        assert store.add([happened]) == 1
        if reward is not None:
            (one,) = store.of_process("b", number)
            store.judge([one.id], Judgement(by="test", at=0.0, reward=reward))
    store.close()


def test_a_file_that_is_right_is_said_to_be() -> None:
    path = labelled("a.csv", ("one", "x"), ("two", "y"))
    assert said("check", path, "-o", "classify") == {"rows": 2, "problems": [], "notes": []}
    assert "nothing is wrong" in llmos("check", path, "-o", "classify").output


def test_every_problem_is_listed_with_its_place() -> None:
    Path("a.jsonl").write_text('{"text": "a", "label": "x"}\n{"label": "x"}\n{"text": ""\n')
    told = said("check", "a.jsonl", "-o", "classify", status=1)
    assert [one["field"] for one in told["problems"]] == ["text", "(line)", "a.jsonl"]
    assert "a.jsonl:2: text: missing" in told["problems"][0]["message"]
    assert "every row has the label 'x'" in told["problems"][2]["message"]


def test_held_out_rows_are_checked_against_those_that_train() -> None:
    train = labelled("train.csv", ("one", "x"), ("two", "y"))
    test = labelled("test.csv", ("one", "x"), ("three", "z"))
    told = said("check", train, "-o", "classify", "--test", test, status=1)
    assert told["problems"][0]["labels"] == ["z"]
    assert told["notes"] == ["test.csv:2 is train.csv:2 again"]


def test_an_empty_file_and_a_wrong_objective_are_refused_in_one_line() -> None:
    Path("a.jsonl").touch()
    done = llmos("check", "a.jsonl", "-o", "tag")
    assert done.exit_code == 1 and "holds no rows" in done.output
    assert llmos("check", "a.jsonl", "-o", "sing").exit_code == 2


def test_rows_are_described_on_a_page() -> None:
    path = labelled("a.csv", ("mail me@example.org", "x"), ("two", "y"))
    assert said("stats", path, "-o", "classify")["personal"] == {"email": 1}
    assert llmos("stats", path, "-o", "classify").stdout.startswith("# a.csv\n")
    llmos("stats", path, "-o", "classify", "--out", "page.md")
    assert "| x | 1 |" in Path("page.md").read_text()


def test_rows_are_divided_into_files_that_can_be_read() -> None:
    rows = [(f"{word} {i} me@example.org", word) for word in ("cards", "loans") for i in range(20)]
    path = labelled("a.csv", *rows)
    told = said("split", path, "-o", "classify", "--out", "parts", "--redact")
    assert [told[side]["rows"] for side in ("train", "dev", "test")] == [32, 4, 4]
    assert told["redacted"] == {"email": 40}
    read = read_rows(Path("parts/train.jsonl"), "classify")
    assert len(read) == 32 and "[email]" in str(read[0][0])


def test_repetitions_do_not_reach_two_sides() -> None:
    rows = [(f"Where is my card number {i}", "x" if i % 2 else "y") for i in range(10)]
    path = labelled("a.csv", *rows, *[(text + "?", label) for text, label in rows])
    told = said("split", path, "-o", "classify", "--out", "parts", "--dedupe")
    left = sum(told[side]["rows"] for side in ("train", "dev", "test"))
    assert told["duplicates"] + told["leaks"] + left == 20
    assert told["duplicates"] > 0


def test_traces_are_written_for_those_who_consented() -> None:
    assert "nobody has consented" in llmos("consent").output
    assert said("consent", "ann")["is_granted"]
    kept("ann", ("Ann, me@example.org", 1.0), ("Bob", 0.0), ("Cid", None))
    told = said("traces", "rows.jsonl")
    assert (told["rows"], told["redacted"]) == (1, {"email": 1})
    assert len(read_rows(Path("rows.jsonl"), "instruct")) == 1
    assert said("traces", "all.jsonl", "--unjudged")["rows"] == 3
    assert said("traces", "pairs.jsonl", "-o", "prefer", "-n", "ann")["rows"] == 1
    assert said("consent") == [{"namespace": "ann", "is_granted": True, "episodes": 3, "judged": 2}]
    assert llmos("traces", "rows.jsonl", "-n", "bob").exit_code != 0


def test_no_rows_leave_the_file_as_it_is() -> None:
    said("consent", "ann")
    kept("ann", ("Ann", 0.0))
    Path("rows.jsonl").write_text("from before\n")
    told = said("traces", "rows.jsonl", status=1)
    assert (told["rows"], told["file"]) == (0, None)
    assert "nothing is written to rows.jsonl" in llmos("traces", "rows.jsonl").output
    assert Path("rows.jsonl").read_text() == "from before\n"


def test_a_withdrawal_deletes() -> None:
    said("consent", "ann")
    kept("ann", ("Ann", 1.0))
    assert said("consent", "ann", "--withdraw")["deleted_episodes"] == 1
    assert said("traces", "rows.jsonl", "--unjudged", status=1)["rows"] == 0
    assert b"Who?" not in b"".join(file.read_bytes() for file in Path(HOME).glob("episodes*"))
