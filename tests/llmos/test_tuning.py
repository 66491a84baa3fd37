"""The stages of tuning, over a bench whose figures are written down here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_requantise import Shipped
from llmos.drivers.tuning import Speed
from llmos.memory.tuned import Choice, Row, WeightsName
from llmos.tuning import Candidate, Room, Tuning, candidates

PLENTY = Room(memory=1 << 40, disk=1 << 40)
SMOL = Shipped(format="Q4_1", parameters=135_000_000, bytes=98_000_000)


class Bench:
    """Rates by format, scaled by what a setting is worth; notes what was asked."""

    def __init__(
        self,
        rates: Mapping[str, float | str],
        *,
        perplexities: Mapping[str, float] | None = None,
        settings: Mapping[tuple[str, Any], float] | None = None,
    ) -> None:
        self._rates = rates
        self._perplexities = perplexities or {}
        self._settings = settings or {}
        self.measured: list[Choice] = []
        self.scored: list[Choice] = []

    def bytes(self, weights: WeightsName) -> int:
        return 100

    def speed(self, choice: Choice) -> Speed:
        self.measured.append(choice)
        rate = self._rates[choice.weights]
        if isinstance(rate, str):
            raise DeviceError(rate)
        for setting in choice.model_dump(exclude_defaults=True, exclude={"weights"}).items():
            rate *= self._settings.get(setting, 1.0)
        return Speed(4 * rate, {1: rate, 4: rate, 16: rate})

    def entropy(self, choice: Choice) -> float:
        self.scored.append(choice)
        named = f"{choice.weights} {choice.kv_type}"
        default = self._perplexities.get(choice.weights, 20.0)
        return math.log(self._perplexities.get(named, default))


def tuning(bench: Bench, **options: Any) -> Tuning:
    return Tuning(bench, lambda doing, row=None: None, **options)


def names(bench: list[Choice]) -> list[str]:
    return [choice.weights for choice in bench]


def all_of(*formats: Any) -> list[Candidate]:
    return [Candidate(format) for format in formats]


# --- candidates -----------------------------------------------------------------------------------


def test_candidates_are_the_formats_that_the_file_does_not_have() -> None:
    assert list(candidates(SMOL, PLENTY)) == all_of("BF16", "F16", "Q8_0", "Q4_0")
    half = SMOL._replace(format="F16")
    assert list(candidates(half, PLENTY)) == all_of("BF16", "Q8_0", "Q4_0")
    assert list(candidates(SMOL, PLENTY, ["F32", "Q4_1"])) == all_of("F32")


def test_a_format_that_does_not_fit_is_refused_with_the_sizes() -> None:
    large = SMOL._replace(parameters=8_000_000_000)
    found = {one.format: one.refusal for one in candidates(large, Room(10 << 30, 5 << 30))}
    assert found["BF16"] == "needs 14.9 GiB of memory, 10.0 GiB are free"
    assert found["Q8_0"] == "needs 7.9 GiB of disk, 5.0 GiB are free"
    assert found["Q4_0"] is None


# --- formats --------------------------------------------------------------------------------------


def test_the_fastest_format_that_keeps_perplexity_wins() -> None:
    bench = Bench(
        {"shipped": 100, "BF16": 200, "F16": 150, "Q4_0": 300},
        perplexities={"shipped": 20, "Q4_0": 23, "BF16": 19.9},
    )
    run = tuning(bench)
    best = run.choose_format(all_of("BF16", "F16", "Q4_0"))
    assert (best.choice.weights, best.loss) == ("BF16", -0.005)
    by_format = {row.choice.weights: row for row in run.rows}
    assert by_format["Q4_0"].note == "loses 15.0% perplexity"
    assert by_format["F16"].loss is None
    # From the fastest on, until one passes; the shipped file once.
    assert names(bench.scored) == ["shipped", "Q4_0", "BF16"]


def test_of_formats_about_as_fast_the_one_that_loses_least_wins() -> None:
    bench = Bench(
        {"shipped": 100, "BF16": 195, "Q8_0": 200, "F16": 150},
        perplexities={"shipped": 20, "Q8_0": 20.1, "BF16": 19.9},
    )
    assert tuning(bench).choose_format(all_of("BF16", "Q8_0", "F16")).choice.weights == "BF16"
    assert "F16" not in names(bench.scored)


def test_more_loss_is_taken_where_it_is_asked_for() -> None:
    bench = Bench({"shipped": 100, "Q4_0": 300}, perplexities={"shipped": 20, "Q4_0": 23})
    assert tuning(bench, most_loss=0.2).choose_format(all_of("Q4_0")).choice.weights == "Q4_0"


def test_a_gain_within_the_noise_changes_nothing_and_scores_nothing() -> None:
    bench = Bench({"shipped": 100, "BF16": 104})
    assert tuning(bench).choose_format(all_of("BF16")).choice == Choice()
    assert bench.scored == []


def test_what_cannot_be_made_or_measured_is_left_out_with_its_reason() -> None:
    bench = Bench({"shipped": 100, "BF16": "no space left", "F16": 150})
    run = tuning(bench)
    formats = [*all_of("BF16", "F16"), Candidate("Q8_0", "needs 9.0 GiB of memory")]
    assert run.choose_format(formats).choice.weights == "F16"
    assert [row.note for row in run.rows] == ["", "no space left", "", "needs 9.0 GiB of memory"]


def test_a_shipped_file_that_cannot_be_measured_ends_the_tuning() -> None:
    with pytest.raises(DeviceError, match="damaged"):
        tuning(Bench({"shipped": "damaged"})).choose_format(all_of("BF16"))


# --- settings -------------------------------------------------------------------------------------


def best_of(bench: Bench, cores: int = 8, **options: Any) -> Row:
    run = tuning(bench, **options)
    return run.choose_settings(run.choose_format([]), cores)


def test_settings_that_gain_are_taken_together() -> None:
    settings = {("threads", 4): 1.5, ("flash_attention", False): 1.2, ("batch_tokens", 256): 0.5}
    best = best_of(Bench({"shipped": 100}, settings=settings))
    assert best.choice == Choice(threads=4, flash_attention=False)


def test_threads_are_tried_below_all_cores() -> None:
    bench = Bench({"shipped": 100})
    best_of(bench, cores=8)
    assert {one.threads for one in bench.measured} == {None, 7, 4}
    alone = Bench({"shipped": 100})
    best_of(alone, cores=1)
    assert {one.threads for one in alone.measured} == {None}


def test_a_setting_must_win_twice() -> None:
    class Lucky(Bench):
        """The first measurement with four threads meets a quiet moment that lasts no longer."""

        def speed(self, choice: Choice) -> Speed:
            is_first = choice.threads == 4 and choice not in self.measured
            is_base = choice == Choice() and Choice(threads=4) in self.measured
            speed = super().speed(choice)
            scale = 1.3 if is_first or is_base else 1.0
            return Speed(speed.prefill * scale, {n: r * scale for n, r in speed.decode.items()})

    assert best_of(Lucky({"shipped": 100})).choice == Choice()


def test_quantised_kv_is_taken_only_if_it_keeps_perplexity() -> None:
    settings = {("kv_type", "q8_0"): 2.0}
    good = Bench({"shipped": 100}, settings=settings)
    assert best_of(good).choice == Choice(kv_type="q8_0")
    bad = Bench({"shipped": 100}, settings=settings, perplexities={"shipped q8_0": 21})
    assert best_of(bad).choice == Choice()


def test_a_setting_that_the_driver_refuses_is_left_out() -> None:
    class Strict(Bench):
        def speed(self, choice: Choice) -> Speed:
            if choice.kv_layout == "unified":
                raise DeviceError("no such layout")
            return super().speed(choice)

    run = tuning(bench := Strict({"shipped": 100}))
    assert run.choose_settings(run.choose_format([]), 2).choice == Choice()
    assert run.rows[-1].note == "no such layout"
    assert bench.measured


def test_after_a_while_the_rest_stays_at_its_defaults() -> None:
    now = iter([0.0, 10.0, 1000.0, 2000.0])
    bench = Bench({"shipped": 100}, settings={("kv_type", "q8_0"): 2.0})
    assert best_of(bench, clock=lambda: next(now)).choice == Choice()
    assert len(bench.measured) == 2
