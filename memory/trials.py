"""The trials of a search for settings: which come next, which are worth going on with.

Owns one SQLite file of trials, kept by optuna: values are drawn by its tree-structured Parzen
estimator, and a trial is given up when it is below the median of earlier ones at the same step.
What was under way when the process died is handed out again first. Refuses to know what a trial
does. Safe for one thread at a time.

Source: Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmos.drivers.metrics.pictures import drawn_by
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation_results import Trial
from llmos.syscalls.values import JsonObject, JsonValue

_STUDY = "search"
_FINGERPRINT = "fingerprint"
# Trials before the estimator and the median know enough to be asked.
_STARTUP_TRIALS = 5
_PRUNING_TRIALS = 3
_ERRORS = "why"


@dataclass(frozen=True, slots=True)
class Range:
    """A setting's values from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """A setting's values, any JSON."""

    values: tuple[JsonValue, ...]


class Trials:
    """The trials in a file. `fingerprint` is what makes two searches the same one."""

    def __init__(
        self,
        path: Path,
        *,
        space: Mapping[str, Range | Choices],
        is_higher_better: bool,
        is_pruned: bool,
        seed: int,
        fingerprint: JsonObject,
    ) -> None:
        """Open or make the file.

        Raises: SyscallError("invalid") when it is of another search, naming what differs;
        ("storage").
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path = path
        self._space = {name: _distribution(values) for name, values in space.items()}
        self._open: dict[int, Any] = {}
        self._noted: dict[int, set[int]] = {}  # steps of each open trial that have a value
        with self._errors(), _quiet():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            pruner = (
                optuna.pruners.MedianPruner(n_startup_trials=_PRUNING_TRIALS)
                if is_pruned
                else optuna.pruners.NopPruner()
            )
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=_STUDY,
                direction="maximize" if is_higher_better else "minimize",
                pruner=pruner,
                load_if_exists=True,
            )
            known = self._study.trials
            # With the seed alone a search that goes on would draw what it drew before.
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed + len(known), n_startup_trials=_STARTUP_TRIALS, constant_liar=True
            )
            self._left = [trial for trial in known if not trial.state.is_finished()]
            self._check(fingerprint)

    def close(self) -> None:
        """Let go of the file; the trials cannot be used after."""
        self._storage.engine.dispose()

    def ask(self) -> tuple[int, JsonObject]:
        """The next trial's number and settings: one left under way, or a new one."""
        import optuna

        with self._errors(), _quiet():
            frozen = self._left.pop(0) if self._left else None
            if frozen is not None:
                # The one way by which optuna hands out a trial again.
                trial = optuna.trial.Trial(self._study, frozen._trial_id)  # pyright: ignore[reportPrivateUsage]
            else:
                trial = self._study.ask(self._space)
            self._open[trial.number] = trial
            self._noted[trial.number] = set(frozen.intermediate_values) if frozen else set()
            return trial.number, _settings(trial.params, self._space)

    def is_hopeless(self, number: int, step: int, value: float) -> bool:
        """Note a trial's metric at a step, and say whether it is to be given up.

        The first value of a step stays: a trial that goes on comes by steps that it took before.
        """
        with self._errors(), _quiet():
            trial = self._open[number]
            if step not in self._noted[number]:
                self._noted[number].add(step)
                trial.report(value, step)
            return bool(trial.should_prune())

    def finish(self, number: int, value: float) -> None:
        """A trial ended with its metric."""
        with self._errors():
            self._study.tell(self._open.pop(number), value)

    def give_up(self, number: int) -> None:
        """A trial was stopped early; the last value noted stands for it."""
        self._end(number, "PRUNED")

    def fail(self, number: int, why: str) -> None:
        """A trial ended with an error."""
        with self._errors():
            self._open[number].set_user_attr(_ERRORS, why)
        self._end(number, "FAIL")

    def finished(self) -> list[Trial]:
        """The trials that are over, in order."""
        with self._errors():
            return [
                _trial(one, self._space) for one in self._study.trials if one.state.is_finished()
            ]

    def best(self) -> tuple[int, float] | None:
        """The number and metric of the best trial that ran to its end, if one did."""
        done = [one for one in self.finished() if one.state == "done"]
        if not done:
            return None
        with self._errors():
            found = self._study.best_trial
            return found.number, float(found.value)  # pyright: ignore[reportArgumentType]

    def plots(self) -> dict[str, str]:
        """Pictures of the search as SVG, by title; those that its trials suffice for."""
        from optuna.visualization import matplotlib as draw

        done = [one for one in self.finished() if one.state == "done"]
        if not done:
            return {}
        made: dict[str, Callable[[], Any]] = {
            "History": lambda: draw.plot_optimization_history(self._study),
            "Settings": lambda: draw.plot_slice(self._study),
        }
        if any(one.intermediate_values for one in self._study.trials):
            made["Course of the trials"] = lambda: draw.plot_intermediate_values(self._study)
        # Importance is a share of the variance; equal values have none.
        if len({one.value for one in done}) > 1 and len(done) >= _STARTUP_TRIALS:
            made["Importance"] = lambda: draw.plot_param_importances(self._study)
        with self._errors(), _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # axes of a setting that did not vary
            return {title: drawn_by(plot) for title, plot in made.items()}

    def _end(self, number: int, state: Literal["PRUNED", "FAIL"]) -> None:
        from optuna.trial import TrialState

        with self._errors():
            self._study.tell(self._open.pop(number), state=TrialState[state])

    def _check(self, fingerprint: JsonObject) -> None:
        before = self._study.user_attrs.get(_FINGERPRINT)
        if before is None:
            self._study.set_user_attr(_FINGERPRINT, fingerprint)
            return
        # As it comes back from the file: tuples are lists there.
        now = json.loads(json.dumps(fingerprint))
        differing = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if differing:
            raise SyscallError(
                "invalid",
                f"finetune.name: a search of this name was begun with another "
                f"{', '.join(differing)}; choose another name to search anew",
                field="finetune.name",
                differing=differing,
            )

    @contextmanager
    def _errors(self) -> Generator[None]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, StorageInternalError, OSError) as problem:
            raise SyscallError(
                "storage",
                f"the trials in {self._path} cannot be used: {problem}; free space there and check "
                "its permissions",
                path=str(self._path),
            ) from problem


@contextmanager
def _quiet() -> Generator[None]:
    """optuna warns of each of its interfaces that may change; the ones used here are pinned."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _distribution(values: Range | Choices) -> Any:
    from optuna import distributions

    if isinstance(values, Choices):
        # optuna keeps plain values alone; a list of frozen layers is a value too.
        return distributions.CategoricalDistribution([json.dumps(one) for one in values.values])
    if values.is_whole:
        return distributions.IntDistribution(
            round(values.low), round(values.high), log=values.is_log
        )
    return distributions.FloatDistribution(values.low, values.high, log=values.is_log)


def _settings(params: Mapping[str, Any], space: Mapping[str, Any]) -> JsonObject:
    from optuna.distributions import CategoricalDistribution

    return {
        name: json.loads(value) if isinstance(space[name], CategoricalDistribution) else value
        for name, value in params.items()
    }


def _trial(frozen: Any, space: Mapping[str, Any]) -> Trial:
    states: Mapping[str, Literal["done", "pruned", "failed"]] = {
        "COMPLETE": "done",
        "PRUNED": "pruned",
    }
    steps: Sequence[int] = sorted(frozen.intermediate_values)
    value = frozen.value
    if value is None and steps:
        value = frozen.intermediate_values[steps[-1]]
    return Trial(
        number=frozen.number,
        settings=_settings(frozen.params, space),
        state=states.get(frozen.state.name, "failed"),
        value=value,
        steps=steps[-1] if steps else 0,
        why=frozen.user_attrs.get(_ERRORS, ""),
    )
