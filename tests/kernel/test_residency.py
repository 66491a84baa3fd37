"""Placing, swapping and keeping, on the scripted device: whatever moves, no text changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.contract import Abilities, DeviceError, Feed, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.drivers.utf8 import TextStream
from llmos.kernel.generation import Generation, Order
from llmos.kernel.pace import Pace
from llmos.kernel.policies import Entry
from llmos.kernel.residency import Residency, shareable_tokens
from llmos.memory.tiers import Tiers
from llmos.syscalls.options import Sampling

# A device on which computing is dear, so that whatever can be kept is.
SLOW = {1: 0.01, 512: 5.0}


class Bench:
    """A device with its residency, and the clock of its tiers."""

    def __init__(
        self,
        *,
        sequences: int = 2,
        host_bytes: int = 10**6,
        disk_bytes: int = 0,
        home: Path | None = None,
        abilities: Abilities | None = None,
        name: str = "scripted",
        batch_tokens: int = 512,
    ) -> None:
        self.now_s = 0.0
        self.pace = Pace(SLOW)
        self.tiers = Tiers(
            host_bytes=host_bytes, disk_bytes=disk_bytes, root=home, now=lambda: self.now_s
        )
        spec = ModelSpec(
            name,
            Path(name),
            sequences=sequences,
            context_tokens=400,
            batch_tokens=batch_tokens,
        )
        self.driver = Scripted(spec, abilities=abilities)
        self.residency = self.reside()
        self.keys = 0

    def reside(self) -> Residency:
        return Residency(self.driver, attach=lambda name: None, pace=self.pace, tiers=self.tiers)

    def make_copying_dear(self) -> None:
        """From now on a copy takes longer than computing."""
        self.pace.observe_copy(tokens=1, seconds=10.0)

    def ask(self, text: str, **order: Any) -> Generation:
        self.keys += 1
        program = order.pop("program", 0)
        return Generation(
            order=Order(
                prompt=tuple(text.encode()),
                sampling=Sampling(temperature=0),
                max_tokens=order.pop("max_tokens", 4),
                **order,
            ),
            entry=Entry(key=self.keys, pid=1, nice=0, arrived_s=0, queued_s=0, program=program),
            pieces=None,
            done=None,  # type: ignore[arg-type]
            text=TextStream(()),
        )

    def feed(self, generation: Generation, *, steps: int) -> None:
        """Feed a placed generation until it has sampled so many tokens."""
        sequence = generation.sequence
        assert sequence is not None
        goal = len(generation.output) + steps
        while len(generation.output) < goal:
            end = min(generation.length, generation.fed + self.driver.info.batch_tokens)
            tokens = generation.known(generation.fed, end)
            sampled = self.driver.step([Feed(sequence, tokens, sample=end == generation.length)])
            self.residency.record(sequence, tokens)
            generation.fed = end
            generation.output.extend(one.token for one in sampled)
            assert self.driver.length(sequence) == generation.fed

    def run(self, text: str, **order: Any) -> tuple[int, list[int]]:
        """Place, generate and let go: how many tokens needed no prefill, and what came out."""
        self.now_s += 1
        generation = self.ask(text, **order)
        assert self.residency.place(generation)
        reused = generation.fed
        self.feed(generation, steps=4)
        self.residency.let_go(generation, keep=True)
        self.tiers.check()
        return reused, generation.output


def alone(text: str) -> list[int]:
    """What a device that has seen nothing else says."""
    return Bench().run(text)[1]


def story(word: str, length: int = 60) -> str:
    return (word * length)[:length]


def test_what_the_device_had_no_room_for_comes_back_from_host_memory() -> None:
    bench = Bench(sequences=2)
    for word in ("amber", "river", "stone", "lantern"):
        assert bench.run(story(word))[0] == 0
    assert bench.residency.holdings().swapped_bytes > 0
    reused, said = bench.run(story("amber") + "!")
    assert reused == 60
    assert said == alone(story("amber") + "!")


def test_agents_that_return_to_a_full_host_memory_change_places_with_those_that_are_cached() -> (
    None
):
    bench = Bench(sequences=1, host_bytes=300)
    texts = [story(word) for word in ("amber", "river", "stone")]
    for _ in range(3):
        texts = [text + bytes(bench.run(text)[1]).decode("latin-1") + "!" for text in texts]
    for at in (0, 2, 1, 2, 0):
        _, said = bench.run(texts[at])
        assert said == alone(texts[at])
        texts[at] += bytes(said).decode("latin-1") + "!"


def test_what_was_found_comes_back_although_its_place_is_needed_for_what_goes() -> None:
    bench = Bench(sequences=1, host_bytes=300)
    said = {word: bench.run(story(word))[1] for word in ("amber", "river")}
    next_turn = story("amber") + bytes(said["amber"]).decode() + "!"
    assert bench.run(next_turn) == (63, alone(next_turn))


def test_a_state_that_is_slower_to_restore_than_to_compute_is_left_where_it_is() -> None:
    bench = Bench(sequences=1, batch_tokens=32)
    bench.run(story("amber"))
    bench.run(story("river"))
    bench.make_copying_dear()
    assert bench.run(story("amber") + "!") == (0, alone(story("amber") + "!"))


def test_a_preempted_generation_that_is_cheaper_to_compute_again_is_not_saved() -> None:
    bench = Bench(sequences=1)
    generation = bench.ask(story("amber"))
    assert bench.residency.place(generation)
    bench.feed(generation, steps=3)
    bench.make_copying_dear()
    bench.residency.swap_out(generation)
    assert bench.residency.holdings().swapped_bytes == 0
    assert bench.residency.place(generation)
    bench.feed(generation, steps=1)
    assert generation.output == alone(story("amber"))


def test_a_shared_beginning_of_a_longer_saved_sequence_is_used() -> None:
    bench = Bench(sequences=1)
    bench.run(story("amber") + story("river"))
    bench.run(story("stone"))
    reused, said = bench.run(story("amber") + story("lantern"))
    assert reused == 60
    assert said == alone(story("amber") + story("lantern"))


def test_without_a_host_budget_all_is_computed_again() -> None:
    bench = Bench(sequences=1, host_bytes=0)
    bench.run(story("amber"))
    bench.run(story("river"))
    assert bench.run(story("amber") + "!")[0] == 0


def test_a_device_that_cannot_save_computes_again() -> None:
    bench = Bench(sequences=1, abilities=Abilities(can_save=False))
    bench.run(story("amber"))
    bench.run(story("river"))
    assert bench.run(story("amber") + "!") == (0, alone(story("amber") + "!"))


def test_a_device_that_cannot_fork_computes_again() -> None:
    bench = Bench(abilities=Abilities(can_fork=False))
    bench.run(story("amber") + "!")
    assert bench.run(story("amber") + "?") == (0, alone(story("amber") + "?"))


def test_a_device_whose_save_fails_loses_only_the_cached_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(sequences=1)

    def fail(sequence: int) -> bytes:
        raise DeviceError("no memory for that")

    monkeypatch.setattr(bench.driver, "save", fail)
    bench.run(story("amber"))
    bench.run(story("river"))
    assert bench.run(story("amber") + "!") == (0, alone(story("amber") + "!"))


def test_a_preempted_generation_goes_on_where_it_was() -> None:
    bench = Bench(sequences=1)
    generation = bench.ask(story("amber"), max_tokens=8)
    assert bench.residency.place(generation)
    bench.feed(generation, steps=3)
    bench.residency.swap_out(generation)
    assert generation.sequence is None
    bench.run(story("river"))
    assert bench.residency.place(generation)
    assert generation.fed == 62
    bench.feed(generation, steps=1)
    assert generation.output == alone(story("amber"))


def test_what_a_preempted_generation_left_goes_with_it() -> None:
    bench = Bench(sequences=1)
    generation = bench.ask(story("amber"))
    assert bench.residency.place(generation)
    bench.feed(generation, steps=1)
    bench.residency.swap_out(generation)
    assert bench.residency.holdings().swapped_bytes > 0
    bench.residency.let_go(generation, keep=False)
    assert bench.residency.holdings().swapped_bytes == 0


def test_saved_states_outlive_a_device_that_was_reopened() -> None:
    bench = Bench(sequences=1)
    bench.run(story("amber"))
    bench.run(story("river"))
    bench.driver = Scripted(
        bench.driver.info and ModelSpec("scripted", Path("scripted"), sequences=1)
    )
    bench.residency = bench.reside()
    assert bench.run(story("amber") + "!")[0] == 60


def test_a_state_that_the_device_refuses_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(sequences=1)
    bench.run(story("amber"))
    bench.run(story("river"))

    def refuse(blob: bytes, sequence: int) -> None:
        raise DeviceError("this state is of another kind")

    monkeypatch.setattr(bench.driver, "restore", refuse)
    with caplog.at_level(logging.WARNING):
        assert bench.run(story("amber") + "!") == (0, alone(story("amber") + "!"))
    assert "computed again" in caplog.text


def test_a_preempted_generation_whose_state_is_refused_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(sequences=1)
    generation = bench.ask(story("amber"), max_tokens=8)
    assert bench.residency.place(generation)
    bench.feed(generation, steps=2)
    bench.residency.swap_out(generation)

    def refuse(blob: bytes, sequence: int) -> None:
        raise DeviceError("this state is of another kind")

    monkeypatch.setattr(bench.driver, "restore", refuse)
    assert bench.residency.place(generation)
    assert generation.fed == 0
    bench.feed(generation, steps=2)
    assert generation.output == alone(story("amber"))


def test_an_adapter_that_cannot_be_attached_leaves_the_device_as_the_account_says() -> None:
    bench = Bench(sequences=1)
    bench.run(story("amber"))
    generation = bench.ask(story("river"), adapter="gone")

    def refuse(name: str) -> None:
        raise DeviceError("its file is gone")

    bench.residency = Residency(bench.driver, attach=refuse, pace=Pace(SLOW), tiers=bench.tiers)
    with pytest.raises(DeviceError):
        bench.residency.place(generation)
    bench.residency.let_go(generation, keep=False)
    assert bench.driver.length(0) == 0
    assert bench.run(story("amber"))[1] == alone(story("amber"))


def test_the_next_start_finds_what_was_worth_most(tmp_path: Path) -> None:
    first = Bench(home=tmp_path, disk_bytes=10**6, sequences=2)
    for word in ("amber", "river", "stone"):
        first.run(story(word))
    first.residency.close()
    second = Bench(home=tmp_path, disk_bytes=10**6)
    for word in ("amber", "river", "stone"):
        assert second.run(story(word) + "!") == (60, alone(story(word) + "!"))


def test_another_model_starts_from_nothing(tmp_path: Path) -> None:
    first = Bench(home=tmp_path, disk_bytes=10**6)
    first.run(story("amber"))
    first.residency.close()
    second = Bench(home=tmp_path, disk_bytes=10**6, name="other")
    assert second.run(story("amber") + "!")[0] == 0


def test_of_a_domain_that_ends_only_the_public_beginning_is_left_for_the_next_start(
    tmp_path: Path,
) -> None:
    public, private = story("rules", 50), story("secret")
    first = Bench(home=tmp_path, disk_bytes=10**6)
    first.run(public + private, domain="~boot-2", public_tokens=50)
    first.residency.close()
    (file,) = tmp_path.rglob("*.kv")
    assert "secret".encode("utf-16-le") not in file.read_bytes()
    second = Bench(home=tmp_path, disk_bytes=10**6)
    assert second.run(public + private, domain="~boot-3", public_tokens=50)[0] == 50


def test_a_private_prefix_serves_its_own_domain_only() -> None:
    bench = Bench(sequences=4)
    asked: dict[str, Any] = {"public_tokens": 50}
    text = story("rules", 50) + story("secret")
    bench.run(text, domain="a", **asked)
    assert bench.run(text + "!", domain="b", **asked)[0] == 50
    assert bench.run(text + "?", domain="a", **asked)[0] == 110


def test_a_private_prefix_in_host_memory_serves_its_own_domain_only() -> None:
    bench = Bench(sequences=1)
    text = story("rules", 50) + story("secret")
    bench.run(text, domain="a", public_tokens=50)
    bench.run(story("river"), domain="c")
    assert bench.run(text + "!", domain="b", public_tokens=50)[0] == 50
    bench.run(story("stone"), domain="c")
    assert bench.run(text + "?", domain="a", public_tokens=50)[0] == 110


def test_a_domain_that_has_ended_leaves_its_public_beginning_to_all() -> None:
    bench = Bench(sequences=4)
    text = story("rules", 50) + story("secret")
    bench.run(text, domain="a", public_tokens=50)
    bench.residency.end_domain("a")
    assert bench.residency.holdings().kv_tokens == 50
    assert bench.run(text + "!", domain="b", public_tokens=50) == (50, alone(text + "!"))
    assert bench.run(text + "!", domain="a", public_tokens=50)[0] == 50


@pytest.mark.parametrize(
    ("domain", "public", "adapter", "expected"),
    [
        ("a", 0, None, 60),
        ("b", 0, None, 0),
        ("b", 40, None, 40),
        ("a", 0, "x", 0),
    ],
)
def test_what_two_orders_can_share(
    domain: str, public: int, adapter: str | None, expected: int
) -> None:
    bench = Bench()
    one = bench.ask(story("amber") + "!", domain="a", public_tokens=60)
    other = bench.ask(story("amber") + "?", domain=domain, public_tokens=public, adapter=adapter)
    assert shareable_tokens(one.order, other.order) == expected


# A model with recurrent state keeps a sequence as a whole or not at all.
WHOLE = Abilities(can_trim=False)


def test_where_nothing_can_be_cut_a_common_beginning_is_computed_again() -> None:
    bench = Bench(sequences=2, abilities=WHOLE)
    bench.run(story("amber") + story("river"))
    other = story("amber") + story("stone")
    assert bench.run(other) == (0, alone(other))
    bench.run(story("lantern"))
    assert bench.run(story("amber") + "!") == (0, alone(story("amber") + "!"))


@pytest.mark.parametrize("sequences", [1, 2])
def test_where_nothing_can_be_cut_the_next_turn_goes_on_from_the_last(sequences: int) -> None:
    bench = Bench(sequences=sequences, abilities=WHOLE)
    text = story("amber")
    for _ in range(3):
        held = len(text) + 3
        text += bytes(bench.run(text)[1]).decode() + "!"
        bench.run(story("river"))
        assert bench.run(text) == (held, alone(text))


def test_where_nothing_can_be_cut_a_domain_leaves_only_what_is_public_as_a_whole() -> None:
    bench = Bench(sequences=4, abilities=WHOLE)
    text = story("rules", 50) + story("secret")
    bench.run(text, domain="a", public_tokens=50)
    bench.run(story("river"), domain="a", public_tokens=400)
    bench.residency.end_domain("a")
    assert bench.residency.holdings().kv_tokens == 63
    assert bench.run(text + "!", domain="b", public_tokens=50) == (0, alone(text + "!"))


def test_where_nothing_can_be_cut_a_private_sequence_is_not_written_for_its_public_beginning(
    tmp_path: Path,
) -> None:
    first = Bench(home=tmp_path, disk_bytes=10**6, abilities=WHOLE)
    first.run(story("rules") + story("secret"), domain="~boot-2", public_tokens=60)
    first.run(story("river"), domain="~boot-2", public_tokens=400)
    first.residency.close()
    (file,) = tmp_path.rglob("*.kv")
    assert "river".encode("utf-16-le") in file.read_bytes()


WORDS = st.sampled_from(["amber", "river", "stone"])
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map(lambda words: "".join(map(story, words)))


@given(
    texts=st.lists(
        st.tuples(
            TEXTS, st.sampled_from(["", "a", "b"]), st.integers(0, 70), st.sampled_from([0, 0, 1])
        )
    ),
    host_bytes=st.sampled_from([0, 300, 10_000]),
    sequences=st.integers(1, 2),
    can_trim=st.booleans(),
)
def test_no_text_depends_on_what_ran_before(
    texts: Sequence[tuple[str, str, int, int]], host_bytes: int, sequences: int, can_trim: bool
) -> None:
    bench = Bench(
        sequences=sequences, host_bytes=host_bytes, abilities=Abilities(can_trim=can_trim)
    )
    for text, domain, public, further_turns in texts:
        said = bench.run(text, domain=domain, public_tokens=public)[1]
        assert said == alone(text)
        for _ in range(further_turns):
            text += bytes(said).decode() + "!"
            said = bench.run(text, domain=domain, public_tokens=public)[1]
            assert said == alone(text)
        if domain and further_turns:
            bench.residency.end_domain(domain)
