"""The scripted driver's own behaviour; the contract suite covers the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.contract import Abilities, DeviceError, Feed, ModelSpec
from llmos.drivers.scripted import Scripted, pseudo_text
from llmos.syscalls.content import user
from llmos.syscalls.options import GREEDY, RegexConstraint

SPEC = ModelSpec("scripted", Path("scripted"), context_tokens=400, sequences=3, batch_tokens=400)


def answer(model: Scripted, text: str, *, prefix: str = "", **adds: Any) -> str:
    pending, out = model.render([user(text)], prefix=prefix), list[int]()
    model.add(0, sampling=GREEDY, **adds)
    while True:
        (sampled,) = model.step([Feed(0, pending, True)])
        pending = [sampled.token, *sampled.forced]
        if not model.info.end_tokens.isdisjoint(pending):
            model.trim(0, 0)
            return model.detokenize([*out, *pending]).decode()
        out += pending


def test_a_reply_follows_the_script() -> None:
    model = Scripted(SPEC, script={"Hi": "Hello ☕", "": "to nothing"})
    assert answer(model, "Hi") == "Hello ☕"
    assert answer(model, "") == "to nothing"


def test_a_script_may_be_a_function() -> None:
    assert answer(Scripted(SPEC, script=str.upper), "é loud") == "É LOUD"


def test_an_unknown_text_gets_a_pseudo_text_of_its_own() -> None:
    model = Scripted(SPEC, script={"Hi": "Hello"})
    assert answer(model, "Who?") == pseudo_text("Who?") == answer(Scripted(SPEC), "Who?")
    assert pseudo_text("Who?") != pseudo_text("Why?")


def test_a_reply_goes_on_after_a_prefix_it_has_and_after_one_it_has_not() -> None:
    model = Scripted(SPEC, script={"Hi": "Hello you"})
    assert answer(model, "Hi", prefix="Hel") == "lo you"
    assert answer(model, "Hi", prefix="Well: ") == "Hello you"


def test_an_empty_reply_ends_at_once() -> None:
    assert answer(Scripted(SPEC, script={"Hi": ""}), "Hi") == ""


def test_a_plain_prompt_is_continued() -> None:
    model = Scripted(SPEC, script={"": "and so on"})
    model.add(0, sampling=GREEDY)
    (sampled,) = model.step([Feed(0, model.tokenize("Once "), True)])
    assert sampled.token == ord("a")


def test_a_constraint_that_the_script_does_not_fit_still_ends() -> None:
    model = Scripted(SPEC, script={"Hi": "Hello"})
    assert answer(model, "Hi", constraint=RegexConstraint(pattern="[0-9]{2,4}")).isdigit()


def test_a_reply_can_be_guessed() -> None:
    model = Scripted(SPEC, script={"Hi": "Hello"})
    model.add(0, sampling=GREEDY)
    sampled = model.step([Feed(0, model.render([user("Hi")]), True, [*b"Helps"])])
    assert [chr(one.token) for one in sampled] == ["H", "e", "l", "l"]
    (after,) = model.step([Feed(0, [ord("l")], True)])
    assert after.token == ord("o")


def test_an_adapter_begins_its_replies_with_its_name() -> None:
    model = Scripted(SPEC, script={"Hi": "Hello"})
    model.attach("pirate", Path("nowhere"))
    assert answer(model, "Hi", adapter="pirate") == "pirate: Hello"
    assert answer(model, "Hi") == "Hello"


def test_failures_come_in_the_order_they_were_asked_for_and_change_nothing() -> None:
    model = Scripted(SPEC)
    model.add(0, sampling=GREEDY)
    for error in (DeviceError("first"), ValueError("second")):
        model.fail_next_step(error)
    with pytest.raises(DeviceError, match="first"):
        model.step([Feed(0, [65], True)])
    with pytest.raises(ValueError, match="second"):
        model.step([Feed(0, [65], True)])
    assert model.length(0) == 0
    assert model.step([Feed(0, [65], True)])


def test_every_step_is_told_before_it_runs() -> None:
    seen: list[tuple[int, int]] = []

    def watch(feeds: Sequence[Feed]) -> None:
        seen.append((len(feeds), model.length(0)))

    model = Scripted(SPEC, on_step=watch)
    model.add(0, sampling=GREEDY)
    model.step([Feed(0, [65, 66], False)])
    model.step([Feed(0, [67], True)])
    assert seen == [(1, 0), (1, 2)]


def test_what_it_is_told_it_cannot_do_it_refuses() -> None:
    cannot = Abilities(
        can_fork=False, can_trim=False, can_save=False, can_constrain=False, can_attach=False
    )
    model = Scripted(SPEC, abilities=cannot)
    model.add(0, sampling=GREEDY)
    model.step([Feed(0, [65, 66], False)])
    for use in (
        lambda: model.fork(0, 1, 2),
        lambda: model.trim(0, 1),
        lambda: model.save(0),
        lambda: model.attach("x", Path("x")),
        lambda: model.add(1, sampling=GREEDY, constraint=RegexConstraint(pattern="a")),
    ):
        with pytest.raises(DeviceError):
            use()
    model.trim(0, 0)
    assert model.length(0) == 0


def test_adapters_mix_in_a_step_only_where_it_is_said() -> None:
    strict = Scripted(SPEC, abilities=Abilities(can_mix_adapters=False))
    for model in (strict, Scripted(SPEC)):
        model.attach("a", Path("a"))
        model.add(0, sampling=GREEDY, adapter="a")
        model.add(1, sampling=GREEDY)
    feeds = [Feed(0, [65], True), Feed(1, [65], True)]
    assert len(model.step(feeds)) == 2
    with pytest.raises(DeviceError, match="mixes the adapters"):
        strict.step(feeds)
