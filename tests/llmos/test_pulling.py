"""Pulling with somebody watching."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from llmos.config import Config, EmbeddingConfig, ModelConfig
from llmos.pulling import bring_models, is_here, needed_models, open_store, pull
from llmos.syscalls.errors import SyscallError


def config(tmp_path: Path, *, driver: str = "torch", offline: bool = False) -> Config:
    return Config(
        home=tmp_path / "home",
        cache=tmp_path / "cache",
        models={"toy": ModelConfig.model_validate({"source": "toy", "driver": driver})},
        embedding=EmbeddingConfig(source="toy"),
        offline=offline,
    )


def screen(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_a_line_per_stage(tmp_path: Path, tiny_model_path: Path) -> None:
    console = screen(is_terminal=False)
    store = open_store(config(tmp_path))
    card = pull(store, f"file:{tiny_model_path}", console, name="toy")
    lines = shown(console).splitlines()
    assert card.name == "toy"
    assert 1 < len(lines) < 10
    assert len(set(lines)) == len(lines)
    assert is_here(store, "toy")


def test_a_terminal_gets_a_bar_that_goes_away(tmp_path: Path, tiny_model_path: Path) -> None:
    console = screen(is_terminal=True)
    pull(open_store(config(tmp_path)), f"file:{tiny_model_path}", console, name="toy")
    assert "checking" in shown(console) or "ready" in shown(console)


def test_what_is_here_is_not_brought_again(tmp_path: Path, tiny_model_path: Path) -> None:
    settings = config(tmp_path, offline=True)
    pull(open_store(settings), f"file:{tiny_model_path}", screen(is_terminal=False), name="toy")
    console = screen(is_terminal=False)
    bring_models(settings, console)
    assert shown(console) == ""


def test_a_damaged_model_is_not_here(tmp_path: Path, tiny_model_path: Path) -> None:
    store = open_store(config(tmp_path))
    pull(store, f"file:{tiny_model_path}", screen(is_terminal=False), name="toy")
    weights = next((store.folder / "toy").glob("*.safetensors"))
    weights.unlink()  # it may be a link to the file that was pulled
    weights.write_bytes(b"")
    assert not is_here(store, "toy")


def test_offline_a_missing_model_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="llmos pull"):
        bring_models(config(tmp_path, offline=True), screen(is_terminal=False))


def test_a_scripted_model_needs_nothing(tmp_path: Path) -> None:
    assert needed_models(config(tmp_path, driver="scripted")) == ()
    assert needed_models(Config()) == ("smollm2", "minilm")


def test_a_configured_reranker_is_needed_too() -> None:
    with_reranker = Config().replace(reranker={"source": "hf:someone/reranker"})
    assert needed_models(with_reranker)[-1] == "hf:someone/reranker"
