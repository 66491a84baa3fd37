"""`llmos tune`, `llmos pull --quantize` and what they leave in the cache folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from llmos import tuning_run
from llmos.cli import app
from llmos.config import Config, load_config
from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_requantise import Shipped
from llmos.drivers.tuning import Speed
from llmos.memory import tuned as tuned_module
from llmos.memory.tuned import Choice, WeightsName
from llmos.tuning import Room
from llmos.tuning_run import Subject, tune, tune_pulled


@pytest.fixture(autouse=True)
def _folder(scripted_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted model beside the default one, on a machine that may have been tuned."""
    monkeypatch.setattr("llmos.weights.recall", tuned_module.recall)
    config = scripted_folder / "llmos.toml"
    config.write_text(config.read_text().replace('default_model = "scripted"\n', ""))


def llmos(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("tune",), 4, "llmos pull smollm2"),
        (("tune", "--show"), 4, "llmos pull smollm2"),
        (("tune", "scripted"), 2, "scripted runs on the scripted driver"),
        (("tune", "nobody"), 4, "there is no model nobody"),
        (("tune", "--max-loss", "-1"), 2, ""),
        (("pull", "smollm2", "--quantize", "Q3"), 2, "'Q3' is no number format; known: F32"),
        (("models", "--remove", "nobody:BF16"), 4, "there is no model nobody"),
    ],
)
def test_what_cannot_be_tuned_or_copied_is_one_line_and_a_status(
    arguments: tuple[str, ...], status: int, says: str
) -> None:
    result = llmos(*arguments)
    assert result.exit_code == status
    assert says in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_model_without_number_formats_is_not_tuned_and_not_copied(tiny_model_path: Path) -> None:
    pulled = llmos("pull", f"file:{tiny_model_path}", "--name", "toy")
    assert "toy is ready" in pulled.stdout
    assert "number format" not in pulled.stderr
    refused = llmos("tune", "toy")
    assert (refused.exit_code, "is no GGUF file" in refused.stderr) == (2, True)
    refused = llmos("pull", "toy", "--name", "toy", "--quantize", "bf16")
    assert (refused.exit_code, "is no GGUF file" in refused.stderr) == (1, True)


# --- what a tuning leaves -------------------------------------------------------------------------


class Bench(tuning_run.ModelBench):
    """Copies are small files and rates are given; BF16 is the fastest, Q4_0 the least exact."""

    rates: dict[str, float] = {"shipped": 100, "BF16": 200, "F16": 150, "Q8_0": 120, "Q4_0": 300}

    def _file(self, weights: WeightsName) -> Path:
        path = copied(self._source, weights)
        if not path.exists():
            path.write_text(weights)
            self._made[weights] = path
        return path

    def speed(self, choice: Choice) -> Speed:
        self._file(choice.weights)
        rate = self.rates[choice.weights]
        return Speed(rate, {1: rate, 4: rate, 16: rate})

    def entropy(self, choice: Choice) -> float:
        return 3.2 if choice.weights == "Q4_0" else 3.0


def copied(source: Path, weights: str) -> Path:
    return source if weights == "shipped" else source.with_name(f"toy.{weights}.gguf")


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "toy.gguf").write_text("as shipped")
    monkeypatch.setattr(tuning_run, "ModelBench", Bench)
    monkeypatch.setattr(tuning_run, "shipped", lambda path: Shipped("Q4_1", 1000, 10))
    monkeypatch.setattr(tuning_run, "room_for", lambda path: Room(1 << 40, 1 << 40))
    monkeypatch.setattr(tuning_run, "copy_path", copied)
    return Subject("toy", folder / "toy.gguf")


def tuned(subject: Subject, **options: Any) -> tuned_module.Tuned:
    screen = Console(file=io.StringIO())
    return tune(load_config(), subject, screen, **{"is_quick": True, **options})


def files(subject: Subject) -> set[str]:
    return {path.name for path in subject.path.parent.iterdir()}


def test_the_winner_stays_and_the_losers_go(subject: Subject) -> None:
    found = tuned(subject)
    assert (found.choice.weights, found.made, found.is_quick) == ("BF16", True, True)
    assert files(subject) == {"toy.gguf", "toy.BF16.gguf"}
    assert tuned_module.recall(load_config().tuned_folder, subject.path) == found


def test_copies_that_were_here_before_stay(subject: Subject) -> None:
    copied(subject.path, "Q8_0").write_text("by hand")
    copied(subject.path, "BF16").write_text("by hand")
    assert tuned(subject).made is False
    assert files(subject) == {"toy.gguf", "toy.Q8_0.gguf", "toy.BF16.gguf"}


def test_the_winner_of_an_earlier_tuning_goes_when_another_wins(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(subject).choice.weights == "BF16"
    assert tuned(subject).made is True  # it is still the tuning's own
    monkeypatch.setattr(Bench, "rates", {**Bench.rates, "F16": 400})
    assert tuned(subject).choice.weights == "F16"
    assert files(subject) == {"toy.gguf", "toy.F16.gguf"}


def test_an_interrupted_tuning_leaves_nothing(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Bench, choice: Choice) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "entropy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(subject)
    assert files(subject) == {"toy.gguf"}
    assert tuned_module.recall(load_config().tuned_folder, subject.path) is None


def test_only_the_formats_that_are_asked_for_are_tried(subject: Subject) -> None:
    found = tuned(subject, formats=["Q8_0", "Q4_0"], most_loss=0.5)
    assert [row.choice.weights for row in found.rows] == ["shipped", "Q8_0", "Q4_0"]
    assert found.choice.weights == "Q4_0"


# --- once, when a model comes ---------------------------------------------------------------------


def configured(subject: Subject, **settings: Any) -> Config:
    model = {"source": f"file:{subject.path}", "driver": "llama_cpp", **settings}
    return load_config(models={"toy": model})


def test_a_model_that_comes_here_is_tuned_once(subject: Subject) -> None:
    screen = Console(file=io.StringIO(), width=200)
    config = configured(subject)
    tune_pulled(config, f"file:{subject.path}", screen)
    tune_pulled(config, f"file:{subject.path}", screen)
    assert isinstance(screen.file, io.StringIO)
    assert screen.file.getvalue().count("once") == 1
    assert tuned_module.recall(config.tuned_folder, subject.path) is not None


@pytest.mark.parametrize("settings", [{"weights": "shipped"}, {"driver": "torch"}])
def test_a_model_whose_weights_are_settled_is_not_tuned(
    subject: Subject, settings: dict[str, str]
) -> None:
    config = configured(subject, **settings)
    tune_pulled(config, f"file:{subject.path}", Console(file=io.StringIO()))
    assert tuned_module.recall(config.tuned_folder, subject.path) is None


def test_a_tuning_that_fails_is_told_and_the_model_stays_usable(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Bench, choice: Choice) -> Speed:
        raise DeviceError("it cannot be measured")

    monkeypatch.setattr(Bench, "speed", broken)
    screen = Console(file=io.StringIO(), width=200)
    tune_pulled(configured(subject), f"file:{subject.path}", screen)
    assert isinstance(screen.file, io.StringIO)
    assert "toy was not tuned: it cannot be measured" in screen.file.getvalue()


# --- the real model -------------------------------------------------------------------------------


@pytest.mark.model
def test_the_real_model_is_copied_tuned_shown_and_opened_with_what_won(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmos.tuning_bench.SCORE_S", 0.0)  # the least text that is scored
    store = Path("cache/models/smollm2")
    store.mkdir(parents=True)
    for file in ("card.json", smollm2_path.name):
        (store / file).symlink_to(smollm2_path.with_name(file))
    pulled = json.loads(llmos("pull", "--quantize", "f16", "--json").stdout)
    assert pulled["copy"]["format"] == "F16"
    assert "smollm2:F16" in llmos("models").stdout
    assert llmos("tune", "--show").exit_code == 1
    measured = llmos("tune", "--quick", "--formats", "BF16", "--json")
    assert measured.exit_code == 0, measured.stderr
    found = json.loads(measured.stdout)
    assert [row["choice"]["weights"] for row in found["rows"]] == ["shipped", "BF16"]
    assert all(
        row["prefill"] > 0 and set(row["decode"]) == {"1", "4", "16"} for row in found["rows"]
    )
    shown = llmos("tune", "--show")
    assert (shown.exit_code, "smollm2 runs best with" in shown.stdout) == (0, True)
    assert "was tuned already" in llmos("tune", "--quick").stdout
    assert f"{found['choice']['weights']} (tuned)" in llmos("devices").stdout
    copies = {path.name.split(".")[-2].split("-")[0] for path in store.glob("*.*-*.gguf")}
    assert copies - {"Q4_1"} == {"F16"} | ({"BF16"} & {found["choice"]["weights"]})
    assert llmos("models", "--remove", "smollm2:F16").exit_code == 0
    assert "smollm2:F16" not in llmos("models").stdout
