"""Settings: order of strength, and errors that name field, origin and remedy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from llmos.config import Config, EmbeddingConfig, ModelConfig, load_config, read_environment
from llmos.syscalls.errors import ConfigError
from llmos.syscalls.rights import Quota


@pytest.fixture(autouse=True)
def _nobodys_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration file but the test's own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write(text: str, path: Path = Path("llmos.toml")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(environment: dict[str, str] | None = None, **overrides: Any) -> Config:
    return load_config(environment=environment or {}, **overrides)


def complaint(environment: dict[str, str] | None = None, **overrides: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(environment, **overrides)
    return caught.value


# --- where settings come from ---------------------------------------------------------------------


def test_without_anything_the_defaults_hold() -> None:
    config = load()
    assert config.default_model == "smollm2"
    assert config.models["smollm2"].driver == "llama_cpp"
    assert config.models["smollm2-torch"].driver == "torch"
    assert config.embedding == EmbeddingConfig(name="minilm", source="minilm", device="cpu")
    assert config == Config()


def test_arguments_beat_the_file_which_beats_the_environment() -> None:
    environment = {
        "LLMOS_POLICY": "fifo",
        "LLMOS_PIPE_BYTES": "1",
        "LLMOS_MAILBOX_MESSAGES": "1",
    }
    write('policy = "round_robin"\npipe_bytes = 2\n')
    config = load(environment, policy="priority")
    assert (config.policy, config.pipe_bytes, config.mailbox_messages) == ("priority", 2, 1)


def test_a_file_in_the_working_folder_hides_the_users_own(tmp_path: Path) -> None:
    write("pipe_bytes = 7", tmp_path / "config" / "llmos" / "llmos.toml")
    assert load().pipe_bytes == 7
    write("mailbox_messages = 8")
    assert (load().pipe_bytes, load().mailbox_messages) == (65_536, 8)


def test_a_named_file_is_read_instead_and_must_exist(tmp_path: Path) -> None:
    write("pipe_bytes = 1")
    other = write("pipe_bytes = 3", tmp_path / "other.toml")
    assert load(file=other).pipe_bytes == 3
    assert load({"LLMOS_CONFIG": str(other)}).pipe_bytes == 3
    assert "there is no such configuration file" in str(complaint(file="nowhere.toml"))


def test_tables_of_file_and_environment_merge_by_key() -> None:
    write("[models.smollm2]\nthreads = 3\n[quota]\ntokens_out = 5\n")
    config = load({"LLMOS_MODELS__SMOLLM2__SEQUENCES": "4", "LLMOS_QUOTA__TOKENS_IN": "9"})
    model = config.models["smollm2"]
    assert (model.threads, model.sequences, model.source) == (3, 4, "smollm2")
    assert "smollm2-torch" in config.models
    assert config.quota == Quota(tokens_in=9, tokens_out=5)


def test_an_argument_replaces_the_whole_setting() -> None:
    scripted = ModelConfig(source="scripted", driver="scripted")
    config = load(models={"scripted": scripted})
    assert list(config.models) == ["scripted"]
    assert config.default_model == "scripted"


def test_a_variable_reaches_models_whose_names_have_dashes() -> None:
    config = load({"LLMOS_MODELS__SMOLLM2_TORCH__DEVICE": "cuda:1"})
    assert config.models["smollm2-torch"].device == "cuda:1"


def test_a_variable_may_hold_a_json_table_and_an_empty_one_is_not_set() -> None:
    config = load({"LLMOS_QUOTA": '{"children": 3}', "LLMOS_POLICY": ""})
    assert (config.quota.children, config.policy) == (3, "priority")


def test_folders_are_absolute_and_those_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    write('home = "state"', tmp_path / "config" / "llmos" / "llmos.toml")
    assert load().home == tmp_path / "config" / "llmos" / "state"
    assert load({"LLMOS_CACHE": "~/models"}).cache == Path.home() / "models"
    assert load(home=Path("here")).home == tmp_path / "work" / "here"


def test_a_changed_copy_is_checked_too() -> None:
    assert Config().replace(policy="fifo").policy == "fifo"
    with pytest.raises(ConfigError, match="did you mean 'policy'"):
        Config().replace(polcy="fifo")


def test_a_config_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Config().policy = "fifo"  # pyright: ignore[reportAttributeAccessIssue]


# --- what is wrong, where, and what to write ------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "field", "says"),
    [
        ({"policy": "prioritty"}, "policy", "'prioritty' is not allowed; did you mean 'priority'?"),
        ({"default_model": "smolm2"}, "default_model", "did you mean 'smollm2'?"),
        ({"pipe_bytes": 0}, "pipe_bytes", "greater than or equal to 1"),
        ({"colour": 1}, "colour", "there is no such setting"),
        ({"models": {}}, "models", "at least 1"),
        ({"models": 3}, "models", "3"),
        ({"models": {"a": {"driver": "torch"}}}, "models.a.source", "is required"),
        (
            {"models": {"a": {"source": "a", "driver": "tortch"}}},
            "models.a.driver",
            "did you mean 'torch'?",
        ),
        (
            {"models": {"a": {"source": "a", "driver": "torch", "device": "gpu"}}},
            "models.a.device",
            "'gpu' is not a device here; write cpu, cuda or cuda:N",
        ),
        (
            {"models": {"a": {"source": "a", "driver": "torch", "device": "mps"}}},
            "models.a.device",
            "'mps' is not a device here; no driver computes on Apple's GPUs; write cpu",
        ),
        ({"embedding": {"device": "mps"}}, "embedding.device", "Apple's GPUs; write cpu"),
        ({"serving": {"device": "mps"}}, "serving.device", "Apple's GPUs; write cpu"),
        (
            {"models": {"a": {"source": "a", "driver": "torch", "treads": 1}}},
            "models.a.treads",
            "did you mean 'threads'?",
        ),
        ({"embedding": {"naem": "x"}}, "embedding.naem", "did you mean 'name'?"),
        ({"embedding": "x"}, "embedding", "'x'"),
        ({"kv": {"sharing": "everyone"}}, "kv.sharing", "known: lineage, all, none"),
        ({"quota": {"tokens_ot": 1}}, "quota.tokens_ot", "did you mean 'tokens_out'?"),
    ],
)
def test_an_error_names_the_field_and_the_remedy(
    overrides: dict[str, Any], field: str, says: str
) -> None:
    problem = complaint(**overrides)
    assert problem.field == field
    assert says in problem.message
    assert problem.message.endswith("(from an argument)") or says == "is required"


def test_an_error_names_where_the_value_came_from() -> None:
    assert "(from the environment)" in complaint({"LLMOS_POLICY": "x"}).message
    path = write('policy = "x"')
    assert f"(from {path.absolute()})" in complaint().message


def test_a_file_that_is_not_toml_is_named() -> None:
    path = write("policy = ")
    problem = complaint()
    assert problem.field == str(path.absolute())
    assert "this is not TOML" in problem.message
    Path("llmos.toml").write_bytes(b"\xff\xfe")
    assert "this is not TOML" in complaint().message


def test_a_file_that_cannot_be_read_is_named() -> None:
    Path("llmos.toml").mkdir()
    assert load() == Config()
    assert "no such configuration file" in str(complaint(file="llmos.toml"))


def test_a_mistyped_variable_is_refused_and_a_foreign_one_left_alone() -> None:
    assert "did you mean LLMOS_POLICY?" in complaint({"LLMOS_POLICI": "fifo"}).message
    settings, unknown = read_environment({"LLMOS_PORT": "tcp://10.0.0.1:80", "HOME": "/root"})
    assert (settings, unknown) == ({}, ("LLMOS_PORT",))


def test_a_variable_that_is_not_json_is_named() -> None:
    problem = complaint({"LLMOS_QUOTA": "{nonsense"})
    assert problem.field == "LLMOS_QUOTA"


def test_a_model_alone_complains_in_the_same_way() -> None:
    with pytest.raises(ConfigError, match="is not a device"):
        ModelConfig(source="s", driver="torch", device="gpu")


def test_errors_pickle() -> None:
    problem = complaint(policy="x")
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem)


def test_the_documentation_names_every_setting() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    for shape in (Config, ModelConfig, EmbeddingConfig, Quota):
        for name in shape.model_fields:
            assert f"`{name}`" in text, f"docs/configuration.md does not mention {name}"


@pytest.mark.parametrize(
    ("draft", "why"),
    [
        ("smal", "is not a configured model"),
        ("large", "cannot guess for itself"),
        ("far", "both models must be on this machine"),
    ],
)
def test_a_draft_is_another_model_of_this_machine(draft: str, why: str) -> None:
    models = {
        "large": {"source": "l", "driver": "scripted", "draft": draft},
        "small": {"source": "s", "driver": "scripted"},
        "far": {"source": "http://somewhere/v1", "driver": "remote", "model": "m"},
    }
    with pytest.raises(ConfigError, match=why) as refused:
        load(models=models, default_model="large")
    assert refused.value.field == "models.large.draft"
