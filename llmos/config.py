"""Settings: what they are, where they come from, and what to say when one is wrong.

Strength, strongest first: arguments, `llmos.toml` (working folder, then the user's configuration
folder), environment variables `LLMOS_*`, defaults. Tables of the file and the environment merge
key by key; an argument replaces the whole setting. Every problem is a `ConfigError` that names the
field, where its value came from, and what to write instead.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, ValidationError, field_validator, model_validator

from llmos.drivers.contract import KVLayout, KVType
from llmos.kernel.policy import PolicyName
from llmos.syscalls.errors import ConfigError
from llmos.syscalls.learning import GateCheck
from llmos.syscalls.rights import Quota
from llmos.syscalls.values import Value

Table = Mapping[str, Any]
DriverName = Literal["llama_cpp", "torch", "scripted", "remote"]
Weights = Literal["tuned", "shipped", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
Sharing = Literal["lineage", "all", "none"]

FILE_NAME = "llmos.toml"
_PREFIX = "LLMOS_"
_FILE_VARIABLE = "LLMOS_CONFIG"
_DEVICE = r"^(cpu|cuda(:\d+)?)$"


class Settings(Value):
    """A value whose validation failures are `ConfigError`s."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as problem:
            raise _config_error(cls, problem) from problem


class ModelConfig(Settings):
    """A language model that agents can name, and the sizes that its driver must keep to.

    `weights`: the file `shipped`, or a copy of it in another number format. `tuned` is what
    `llmos tune` chose for this machine, its settings too where none are given here; as shipped
    until it ran. `draft` is another configured model, a small one of the same vocabulary on this
    machine, that guesses what this one says next where that is faster. `base` names the weights
    where the source does not: models of one base stand in for each other. The settings from `model`
    on are of driver `remote` only, whose source is the address of a server; prices are for a
    million tokens.
    """

    source: str = Field(min_length=1)
    driver: DriverName
    device: str = Field(default="cpu", pattern=_DEVICE)
    dtype: str = "auto"
    context_tokens: int = Field(default=4096, ge=64)
    sequences: int = Field(default=16, ge=1, le=256)
    batch_tokens: int = Field(default=512, ge=1)
    threads: int | None = Field(default=None, ge=1)
    kv_layout: KVLayout = "auto"
    kv_cells: int | None = Field(default=None, ge=64)
    kv_type: KVType = "f16"
    flash_attention: bool | None = None
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    weights: Weights = "tuned"
    draft: str | None = None
    base: str | None = Field(default=None, min_length=1)
    model: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    session_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$")
    concurrency: int = Field(default=8, ge=1, le=10_000)
    timeout_s: float = Field(default=120.0, gt=0)
    retries: int = Field(default=3, ge=0, le=20)
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)
    budget: float | None = Field(default=None, ge=0)
    budget_tokens: int | None = Field(default=None, ge=0)

    @property
    def where(self) -> str:
        """Where the model runs: a device of this machine, or a server."""
        return urlsplit(self.source).netloc if self.driver == "remote" else self.device

    @model_validator(mode="after")
    def _check_remote(self) -> Self:
        if self.driver != "remote":
            given = next((name for name in _REMOTE_ONLY if name in self.model_fields_set), None)
            if given is not None:
                raise ConfigError(given, 'it is a setting of driver "remote" only; leave it out')
            return self
        address = urlsplit(self.source)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(
                "source", f"{self.source!r} is not an address; write http://HOST:PORT/v1"
            )
        if address.username is not None or address.password is not None:
            raise ConfigError(
                "source", "an address with a key in it ends up in logs; write api_key_env"
            )
        if self.model is None:
            raise ConfigError("model", "this setting is required: the model's name at the server")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.driver != "llama_cpp" and self.weights not in ("tuned", "shipped"):
            raise ConfigError(
                "weights",
                f"{self.weights!r} is a format of the llama_cpp driver's; the {self.driver} driver "
                "takes the file as shipped, in the number format that `dtype` says",
            )
        return self


class EmbeddingConfig(Settings):
    """The embedding model behind `Embed` and the long-term store.

    The prefixes are what the model wants before queries and documents; None: what its files say.
    `cache_bytes` of computed vectors are kept in memory and `cache_disk_bytes` on disk, so that
    what was embedded once is not embedded again.
    """

    name: str = Field(default="minilm", min_length=1)
    source: str = Field(default="minilm", min_length=1)
    device: str = Field(default="cpu", pattern=_DEVICE)
    dtype: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    query_prefix: str | None = None
    document_prefix: str | None = None
    cache_bytes: int = Field(default=64 * 2**20, ge=0)
    cache_disk_bytes: int = Field(default=256 * 2**20, ge=0)


class RerankerConfig(Settings):
    """The cross-encoder behind `Retrieve(rerank=True)`."""

    source: str = Field(min_length=1)
    name: str = Field(default="reranker", min_length=1)
    device: str = Field(default="cpu", pattern=_DEVICE)
    dtype: str = "auto"
    threads: int | None = Field(default=None, ge=1)


class ConsolidationConfig(Settings):
    """When idle time is used to make dialogues into facts, and how much of it; off by default."""

    enabled: bool = False
    idle_s: float = Field(default=60.0, gt=0)
    every_s: float = Field(default=600.0, ge=0)
    tokens: int = Field(default=50_000, ge=1)
    wall_s: float = Field(default=120.0, gt=0)
    model: str | None = Field(default=None, min_length=1)


_REMOTE_ONLY = (
    "model",
    "api_key_env",
    "session_header",
    "concurrency",
    "timeout_s",
    "retries",
    "price_in",
    "price_out",
    "budget",
    "budget_tokens",
)


class KVConfig(Settings):
    """What becomes of computed KV that a device has no room for, and who may reuse it.

    `host_bytes` is for each device; None: a tenth of the machine's memory. `disk_bytes` is for each
    device too; 0: nothing is written. `sharing` is "lineage", "all" or "none".
    """

    host_bytes: int | None = Field(default=None, ge=0)
    disk_bytes: int = Field(default=2**30, ge=0)
    sharing: Sharing = "lineage"


def _default_models() -> dict[str, ModelConfig]:
    return {
        "smollm2": ModelConfig(source="smollm2", driver="llama_cpp"),
        "smollm2-torch": ModelConfig(source="smollm2", driver="torch"),
    }


class ServingConfig(Settings):
    """How much of what was trained is kept loaded: what was used longest ago goes first.

    `task_bytes` bounds the task models together; `max_adapters` and `adapter_bytes` the adapters
    of each device. `device` is where task models compute.
    """

    task_bytes: int = Field(default=512 * 2**20, ge=0)
    device: str = Field(default="cpu", pattern=_DEVICE)
    max_adapters: int = Field(default=32, ge=1)
    adapter_bytes: int = Field(default=1024 * 2**20, ge=0)


class Config(Settings):
    """Everything that a kernel is booted with.

    `home` holds process homes, the long-term store and histories; `cache` holds pulled models.
    `quota` bounds all that one kernel runs. `quantum_tokens` is how long a sequence keeps
    its place in the batch under round robin. `offline` forbids downloads.
    """

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("llmos")))
    cache: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("llmos")))
    models: dict[str, ModelConfig] = Field(default_factory=_default_models, min_length=1)
    default_model: str = ""
    classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    embedding: EmbeddingConfig = EmbeddingConfig()
    reranker: RerankerConfig | None = None
    consolidation: ConsolidationConfig = ConsolidationConfig()
    kv: KVConfig = KVConfig()
    serving: ServingConfig = ServingConfig()
    gates: dict[str, tuple[GateCheck, ...]] = Field(default_factory=dict)
    policy: PolicyName = "priority"
    mailbox_messages: int = Field(default=256, ge=1)
    pipe_bytes: int = Field(default=65_536, ge=1)
    trace_events: int = Field(default=200_000, ge=0)
    redactor: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    private_notes_days: float = Field(default=90.0, gt=0)
    quantum_tokens: int = Field(default=16, ge=1)
    ageing_s: float = Field(default=60.0, gt=0)
    head_start_s: float = Field(default=600.0, ge=0)
    prompt_cost: float = Field(default=1.0, gt=0)
    new_cost: float = Field(default=2.0, gt=0)
    shares: dict[str, float] = Field(default_factory=dict)
    step_ms: float = Field(default=250.0, gt=0)
    calm_step_ms: float = Field(default=1000.0, gt=0)
    urgent_stretch: float = Field(default=3.2, ge=1)
    prompt_share: float = Field(default=0.25, gt=0, lt=1)
    batching_gain: float = Field(default=4.0, ge=0)
    speculation: bool = True
    max_queued: int = Field(default=10_000, ge=1)
    quota: Quota = Quota()
    offline: bool = False

    @field_validator("home", "cache", mode="after")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("gates", mode="after")
    @classmethod
    def _absolute_sets(
        cls, gates: dict[str, tuple[GateCheck, ...]]
    ) -> dict[str, tuple[GateCheck, ...]]:
        return {
            slot: tuple(
                check.model_copy(update={"data": str(Path(check.data).expanduser().absolute())})
                for check in checks
            )
            for slot, checks in gates.items()
        }

    @field_validator("shares", mode="after")
    @classmethod
    def _positive(cls, shares: dict[str, float]) -> dict[str, float]:
        for client, share in shares.items():
            if not 0 < share < float("inf"):
                raise ConfigError(f"shares.{client}", f"{share} is no share; write a number over 0")
        return shares

    @field_validator("models", mode="before")
    @classmethod
    def _each_model(cls, models: Any) -> Any:
        if not isinstance(models, Mapping):
            return models
        entries: Mapping[Any, Any] = models
        return {
            name: _nested(f"models.{name}", ModelConfig, entry) for name, entry in entries.items()
        }

    @field_validator("embedding", mode="before")
    @classmethod
    def _embedding(cls, embedding: Any) -> Any:
        return _nested("embedding", EmbeddingConfig, embedding)

    @field_validator("reranker", mode="before")
    @classmethod
    def _reranker(cls, reranker: Any) -> Any:
        return None if reranker is None else _nested("reranker", RerankerConfig, reranker)

    @field_validator("consolidation", mode="before")
    @classmethod
    def _consolidation(cls, consolidation: Any) -> Any:
        return _nested("consolidation", ConsolidationConfig, consolidation)

    @field_validator("kv", mode="before")
    @classmethod
    def _kv(cls, kv: Any) -> Any:
        return _nested("kv", KVConfig, kv)

    @field_validator("serving", mode="before")
    @classmethod
    def _serving(cls, serving: Any) -> Any:
        return _nested("serving", ServingConfig, serving)

    @model_validator(mode="before")
    @classmethod
    def _choose_default_model(cls, data: Any) -> Any:
        """Without a word on it, the default model is "smollm2" where configured, else the first."""
        if not isinstance(data, Mapping) or data.get("default_model"):
            return data
        models: Any = data.get("models", ("smollm2",))
        names = [str(name) for name in models] if isinstance(models, Iterable) else []
        chosen = "smollm2" if "smollm2" in names or not names else names[0]
        return {**data, "default_model": chosen}

    @model_validator(mode="after")
    def _check_default_model(self) -> Config:
        if self.default_model not in self.models:
            raise ConfigError(
                "default_model",
                f"{self.default_model!r} is not a configured model"
                f"{_suggestion(self.default_model, self.models)}",
            )
        return self

    @model_validator(mode="after")
    def _check_drafts(self) -> Config:
        for name, model in self.models.items():
            if model.draft is None:
                continue
            why = None
            if model.draft not in self.models:
                why = f"is not a configured model{_suggestion(model.draft, self.models)}"
            elif model.draft == name:
                why = "cannot guess for itself; name a smaller model"
            elif "remote" in (model.driver, self.models[model.draft].driver):
                why = "cannot be used: both models must be on this machine"
            if why is not None:
                raise ConfigError(f"models.{name}.draft", f"{model.draft!r} {why}")
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> Config:
        for name, members in self.classes.items():
            if name in self.models or name == "any":
                what = "built in" if name == "any" else "a model's name"
                raise ConfigError(f"classes.{name}", f"{name!r} is {what}; choose another")
            if not members:
                raise ConfigError(f"classes.{name}", "a class needs at least one model")
            for member in members:
                if member not in self.models:
                    raise ConfigError(
                        f"classes.{name}",
                        f"{member!r} is not a configured model{_suggestion(member, self.models)}",
                    )
        return self

    @property
    def models_folder(self) -> Path:
        """Where the model store keeps what was pulled."""
        return self.cache / "models"

    @property
    def tuned_folder(self) -> Path:
        """Where is kept what `llmos tune` found."""
        return self.cache / "tuned"

    def replace(self, **changes: Any) -> Config:
        """A checked copy with some settings changed."""
        return build_config({**dict(self), **changes})


def build_config(settings: Mapping[str, Any]) -> Config:
    """A config from a mapping. Raises: ConfigError."""
    return Config.model_validate(dict(settings))


def load_config(
    *,
    file: Path | str | None = None,
    environment: Mapping[str, str] | None = None,
    **overrides: Any,
) -> Config:
    """The config of this working folder, user and environment.

    `file` (or the variable LLMOS_CONFIG) names a file that must exist and is read instead of
    `llmos.toml`. An override of None counts as not given. Raises: ConfigError.
    """
    variables = os.environ if environment is None else environment
    arguments = {key: value for key, value in overrides.items() if value is not None}
    found = find_file(file or variables.get(_FILE_VARIABLE) or None)
    from_environment, _ = read_environment(variables)
    layers: dict[str, dict[str, Any]] = {
        "the environment": from_environment,
        str(found or FILE_NAME): read_file(found) if found else {},
        "an argument": arguments,
    }
    # Only what they say themselves: what nobody set stays open for `llmos tune` to choose.
    known_models = {
        name: model.model_dump(exclude_unset=True) for name, model in _default_models().items()
    }
    settings: dict[str, Any] = {"models": known_models}
    for origin, layer in layers.items():
        settings = {**settings, **layer} if origin == "an argument" else _merged(settings, layer)
    try:
        return build_config(settings)
    except ConfigError as problem:
        origin = _origin(problem.field, layers)
        if origin is None:
            raise
        raise ConfigError(problem.field, f"{problem.message} (from {origin})") from problem


def find_file(named: Path | str | None = None) -> Path | None:
    """The configuration file in force, or None. Raises: ConfigError when a named one is missing."""
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigError(str(named), "there is no such configuration file")
        return path.absolute()
    folders = (Path.cwd(), Path(platformdirs.user_config_dir("llmos")))
    return next((path for folder in folders if (path := folder / FILE_NAME).is_file()), None)


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a file; its relative folders are relative to it. Raises: ConfigError."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(str(path), f"this is not TOML: {problem}") from problem
    except OSError as problem:
        raise ConfigError(str(path), f"the file cannot be read: {problem.strerror}") from problem
    for key in ("home", "cache"):
        if isinstance(settings.get(key), str):
            settings[key] = path.parent / Path(settings[key]).expanduser()
    return settings


def read_environment(variables: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings in `LLMOS_*` variables, and the variables that name none.

    Two underscores descend a table: `LLMOS_MODELS__SMOLLM2__THREADS=2`. A value that starts as a
    JSON object or array is one; an empty value counts as not set. A variable that only resembles a
    setting is refused as a typing error; any other is left alone, because container platforms
    inject variables such as LLMOS_PORT for a service of this name.
    """
    settings: dict[str, Any] = {}
    unknown: list[str] = []
    for variable, text in sorted(variables.items()):
        if not variable.startswith(_PREFIX) or variable == _FILE_VARIABLE or not text:
            continue
        path = variable.removeprefix(_PREFIX).lower().split("__")
        if path[0] not in Config.model_fields:
            if near := _nearest(path[0], Config.model_fields):
                raise ConfigError(
                    variable, f"there is no such setting; did you mean {_PREFIX}{near.upper()}?"
                )
            unknown.append(variable)
            continue
        if path[0] == "models" and len(path) > 1:
            path[1] = _model_name(path[1])
        table = settings
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = _environment_value(variable, text)
    return settings, tuple(unknown)


# --- internals ------------------------------------------------------------------------------------


def _environment_value(variable: str, text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise ConfigError(variable, f"this is not JSON: {problem}") from problem


def _model_name(spelled: str) -> str:
    """The default model that a variable means: names with dashes are spelled with underscores."""
    by_spelling = {name.replace("-", "_"): name for name in _default_models()}
    return by_spelling.get(spelled, spelled)


def _merged(weak: Table, strong: Table) -> dict[str, Any]:
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(cast(Table, below), cast(Table, value))
        else:
            merged[key] = value
    return merged


def _origin(field: str, layers: Mapping[str, Table]) -> str | None:
    """Which layer gave a field its value; None when it is a default."""
    for origin, layer in reversed(list(layers.items())):
        value: Any = layer
        for key in field.split("."):
            if not isinstance(value, Mapping) or key not in value:
                break
            value = value[key]
        else:
            return origin
    return None


def _nested(field: str, shape: type[Settings], data: Any) -> Any:
    """`data` as a `shape`; an error inside it names its whole path."""
    try:
        return shape.model_validate(data)
    except ConfigError as problem:
        is_whole = problem.field == shape.__name__
        path = field if is_whole else f"{field}.{problem.field}"
        raise ConfigError(path, problem.message) from problem


def _config_error(shape: type[Settings], problem: ValidationError) -> ConfigError:
    """The first validation failure in words that say what to write."""
    first = problem.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join(path) or shape.__name__
    value: Any = first.get("input")
    match first["type"]:
        case "extra_forbidden":
            known = Quota.model_fields if path[0] == "quota" else shape.model_fields
            return ConfigError(field, f"there is no such setting{_suggestion(path[-1], known)}")
        case "missing":
            return ConfigError(field, "this setting is required")
        case "literal_error":
            allowed = get_args(shape.model_fields[path[0]].annotation)
            return ConfigError(field, f"{value!r} is not allowed{_suggestion(str(value), allowed)}")
        case "string_pattern_mismatch" if path[-1] == "device":
            remedy = "write cpu, cuda or cuda:N"
            if value == "mps":
                remedy = "no driver computes on Apple's GPUs; write cpu"
            return ConfigError(field, f"{value!r} is not a device here; {remedy}")
        case _:
            return ConfigError(field, f"{value!r}: {first['msg'][:1].lower()}{first['msg'][1:]}")


def _nearest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)), None)


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.5)), None)
    guess = f"; did you mean {near!r}?" if near else ";"
    return f"{guess} known: {', '.join(names)}"
