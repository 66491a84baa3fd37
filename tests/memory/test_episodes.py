"""The episode store: kept with consent, judged, found, deleted."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.memory.episodes import FILE, EpisodeStore, Happened, Judgement
from llmos.syscalls.content import Message, ToolRequest, assistant, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec

TOOL = ToolSpec(name="add", description="Add.", parameters={"type": "object"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    opened = EpisodeStore(tmp_path)
    yield opened
    opened.close()


def happened(namespace: str = "ann", pid: int = 1, **changes: Any) -> Happened:
    fields: dict[str, Any] = {
        "namespace": namespace,
        "boot": "b",
        "pid": pid,
        "lineage": (pid,),
        "program": "p",
        "task": "t",
        "model": "m",
        "adapter": "a",
        "at": 1.0,
        "messages": (user("Who?"),),
        "tools": (TOOL,),
        "answer": assistant("Ann"),
        "finish": "stop",
        "prompt_tokens": 1,
        "answer_tokens": 1,
        **changes,
    }
    return Happened(**fields)


def grant(store: EpisodeStore, *namespaces: str) -> None:
    for namespace in namespaces:
        store.consent(namespace, is_granted=True, by="test", at=0.0)


def judged(store: EpisodeStore, pid: int, **said: Any) -> None:
    episodes = [one.id for one in store.of_process("b", pid)]
    store.judge(episodes, Judgement(by="test", at=2.0, **said))


def test_an_episode_comes_back_as_it_was(store: EpisodeStore) -> None:
    request = ToolRequest(id="1", name="add", arguments={"a": [1, None]})
    answer = Message(role="assistant", tool_requests=(request,))
    grant(store, "ann")
    assert store.add([happened(answer=answer)]) == 1
    (one,) = store.find(["ann"])
    assert (one.messages, one.tools, one.answer) == ((user("Who?"),), (TOOL,), answer)
    assert (one.model, one.adapter, one.task, one.score) == ("m", "a", "t", None)


def test_only_who_consents_is_kept_whatever_else_is_in_the_batch(store: EpisodeStore) -> None:
    grant(store, "ann", "cid")
    store.consent("cid", is_granted=False, by="test", at=1.0)
    assert store.add([happened("ann"), happened("bob"), happened("cid")]) == 1
    assert store.counts() == {"ann": (1, 0)}
    assert store.consents() == {"ann": True, "cid": False}


def test_a_withdrawal_leaves_nothing_on_the_disk(store: EpisodeStore, tmp_path: Path) -> None:
    grant(store, "ann", "bob")
    store.add([happened("ann", answer=assistant("a secret")), happened("bob")])
    assert store.consent("ann", is_granted=False, by="test", at=1.0) == 1
    assert store.counts() == {"bob": (1, 0)}
    assert b"a secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_processes_are_found_with_their_descendants_of_the_same_boot(store: EpisodeStore) -> None:
    grant(store, "ann")
    store.add(
        [
            happened(pid=2),
            happened(pid=12, lineage=(2, 12)),
            happened(pid=21, lineage=(21,)),
            happened(pid=2, boot="other"),
        ]
    )
    assert [one.lineage for one in store.of_process("b", 2)] == [(2,), (2, 12)]
    (one,) = store.of_id(4)
    assert one.boot == "other"
    assert store.of_id(99) == []


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ({"verdict": "pass"}, 1.0),
        ({"verdict": "fail", "thumb": "up"}, 0.0),
        ({"thumb": "down"}, 0.0),
        ({"reward": -3.5, "verdict": "pass"}, -3.5),
        ({"task": "other"}, None),
    ],
)
def test_a_score_is_the_reward_or_the_verdict_or_the_thumb(
    store: EpisodeStore, said: dict[str, Any], score: float | None
) -> None:
    grant(store, "ann")
    store.add([happened()])
    judged(store, 1, **said)
    assert [one.score for one in store.find(["ann"])] == [score]


def test_episodes_are_found_by_score_time_and_number(store: EpisodeStore) -> None:
    grant(store, "ann", "bob")
    store.add([happened(pid=pid, at=float(pid)) for pid in range(1, 7)])
    store.add([happened("bob", pid=9, at=9.0)])
    for pid in (1, 2, 3):
        judged(store, pid, reward=float(pid))

    def found(namespaces: list[str], **options: Any) -> list[float]:
        return [one.at for one in store.find(namespaces, **options)]

    assert found(["ann", "bob"]) == [1, 2, 3, 4, 5, 6, 9]
    assert found(["ann"], min_score=2.0) == [2, 3]
    assert found(["ann"], is_judged=True) == [1, 2, 3]
    assert found(["ann"], since=5.0) == [5, 6]
    assert found(["ann"], limit=2) == [5, 6]
    assert found([]) == []


def test_a_second_judgement_keeps_what_it_does_not_say(store: EpisodeStore) -> None:
    grant(store, "ann")
    store.add([happened()])
    judged(store, 1, thumb="up", task="named")
    judged(store, 1, verdict="fail")
    (one,) = store.find(["ann"])
    assert (one.score, one.task) == (0.0, "named")


def test_conversations_are_for_their_owners_eyes(store: EpisodeStore, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_file_that_is_no_database_is_refused_as_damaged(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(SyscallError) as refused:
        EpisodeStore(tmp_path)
    assert refused.value.code == "storage"


def test_two_that_have_it_open_see_each_others_words(store: EpisodeStore, tmp_path: Path) -> None:
    grant(store, "ann")
    beside = EpisodeStore(tmp_path)
    beside.consent("ann", is_granted=False, by="operator", at=1.0)
    assert store.add([happened()]) == 0
    beside.close()


def test_of_too_many_episodes_the_oldest_go(tmp_path: Path) -> None:
    small = EpisodeStore(tmp_path, most=3)
    grant(small, "ann", "bob")
    for at in range(5):
        small.add([happened("bob" if at % 2 else "ann", at=float(at))])
    assert [one.at for one in small.find(["ann", "bob"])] == [2, 3, 4]
    small.close()
