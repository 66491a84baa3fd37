"""Settings of remote models and of classes: what is wrong is named, with what to write."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.booting import settings_of
from llmos.config import build_config
from llmos.syscalls.errors import ConfigError

FAR: dict[str, Any] = {"driver": "remote", "source": "http://10.0.0.7:8000/v1", "model": "m"}
NEAR: dict[str, Any] = {"driver": "scripted", "source": "m"}


def refused(**settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as problem:
        build_config(settings)
    return problem.value


def test_a_remote_model_becomes_a_setting_of_the_kernel() -> None:
    far = {**FAR, "concurrency": 3, "price_in": 1.5, "budget": 2.0, "base": "m"}
    settings = settings_of(
        build_config({"models": {"far": far, "near": NEAR}, "classes": {"small": ["near", "far"]}})
    )
    found = settings.models["far"]
    assert found.open is None and found.weights is None
    assert found.base == settings.models["near"].base == "m"
    assert found.remote is not None and found.remote.prices is not None
    assert found.remote.concurrency == 3
    assert (found.remote.prices.price_in, found.remote.prices.money) == (1.5, 2.0)
    assert settings.classes == {"small": ("near", "far")}


def test_remote_models_do_not_stand_in_unless_told_so() -> None:
    settings = settings_of(build_config({"models": {"far": FAR, "near": NEAR}}))
    assert settings.models["far"].base != settings.models["near"].base


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"source": "smollm2"}, "models.far.source", "http://HOST:PORT/v1"),
        ({"source": "ftp://host/v1"}, "models.far.source", "http://HOST:PORT/v1"),
        ({"source": "http://me:secret@host/v1"}, "models.far.source", "api_key_env"),
        ({"model": None}, "models.far.model", "required"),
        ({"api_key_env": "not a name"}, "models.far.api_key_env", ""),
        ({"session_header": "a: b"}, "models.far.session_header", ""),
        ({"concurrency": 0}, "models.far.concurrency", ""),
        ({"budget": -1}, "models.far.budget", ""),
    ],
)
def test_a_wrong_setting_of_a_remote_model_is_named(
    change: dict[str, Any], field: str, words: str
) -> None:
    problem = refused(models={"far": {**FAR, **change}})
    assert problem.field == field
    assert words in problem.message
    assert "secret" not in problem.message


def test_settings_of_remote_models_are_refused_elsewhere() -> None:
    problem = refused(models={"near": {**NEAR, "budget": 1.0}})
    assert problem.field == "models.near.budget"


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"small": ["naer"]}, "did you mean 'near'"),
        ({"small": []}, "at least one"),
        ({"near": ["near"]}, "a model's name"),
        ({"any": ["near"]}, "built in"),
    ],
)
def test_a_wrong_class_is_named(classes: dict[str, Any], words: str) -> None:
    problem = refused(models={"near": NEAR}, classes=classes)
    assert words in problem.message
