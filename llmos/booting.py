"""Boot: the only place that knows every floor.

Turns a configuration into a running kernel: finds models in the store, hands out the SDK's handle,
registers the shipped programs and tools.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmos.agents.handle import OS
from llmos.agents.programs import PROGRAMS
from llmos.agents.tools import TOOLS
from llmos.config import (
    Config,
    ConsolidationConfig,
    EmbeddingConfig,
    ModelConfig,
    RerankerConfig,
    load_config,
)
from llmos.drivers.chat_model import ChatModel, RemoteSpec
from llmos.drivers.contract import (
    CrossEncoder,
    DeviceError,
    EmbeddingModel,
    LanguageModel,
    ModelSpec,
)
from llmos.drivers.labeller import Labeller
from llmos.drivers.opening import (
    DriverName,
    open_cross_encoder,
    open_embedding_model,
    open_language_model,
    open_remote_model,
    open_task_model,
)
from llmos.drivers.sentence_folder import dimensions as embedding_dimensions
from llmos.drivers.sentence_folder import identity as embedding_identity
from llmos.drivers.task_folder import BODY, read_task
from llmos.kernel.adapter_slots import AdapterLimits
from llmos.kernel.budget import Prices
from llmos.kernel.clock import Clock
from llmos.kernel.consolidation import ConsolidationSetting
from llmos.kernel.kernel import Kernel
from llmos.kernel.library import open_store
from llmos.kernel.planner import Limits
from llmos.kernel.policy import PolicySettings
from llmos.kernel.sandbox import PYTHON_TOOL
from llmos.kernel.settings import (
    EmbeddingSetting,
    KVSettings,
    ModelSetting,
    RemoteSetting,
    RerankerSetting,
    Settings,
    TaskSetting,
)
from llmos.memory.model_store import ModelStore
from llmos.memory.store import Store
from llmos.memory.vector_model import VectorModel
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.trap import ProgramFunction
from llmos.weights import fitted

# Of the default embedding model, so that the store opens where the model is not yet pulled.
_DEFAULT_DIMENSIONS = 384


@asynccontextmanager
async def boot(
    config: Config | None = None,
    *,
    programs: Mapping[str, ProgramFunction] | None = None,
    clock: Clock | None = None,
    **overrides: Any,
) -> AsyncGenerator[Kernel]:
    """Run a kernel for as long as the block lasts.

    Devices open when they are first used. `programs` are added to the shipped ones.
    Raises: ConfigError naming the setting that is wrong.
    """
    if config is None:
        config = load_config(**overrides)
    elif overrides:
        config = config.replace(**overrides)
    kernel = Kernel(
        settings_of(config), bind=OS, programs={**PROGRAMS, **(programs or {})}, clock=clock
    )
    for tool in (*TOOLS, PYTHON_TOOL):
        kernel.tools.add(tool)
    try:
        yield kernel
    finally:
        await asyncio.shield(kernel.stop())


@contextmanager
def open_memory(config: Config) -> Generator[Store]:
    """The long-term store of the configured home, without a kernel.

    Raises: ConfigError, SyscallError("storage").
    """
    store = open_store(settings_of(config))
    try:
        yield store
    finally:
        store.close()


def settings_of(config: Config) -> Settings:
    """What the kernel is told of a configuration."""
    store = ModelStore(config.models_folder)
    embedding = config.embedding
    return Settings(
        home=config.home,
        models=_models(config, store),
        default_model=config.default_model,
        classes=config.classes,
        embedding=EmbeddingSetting(
            name=embedding.name,
            dimensions=lambda: _dimensions(embedding, store),
            open=_embedding_opener(embedding, store),
            identify=lambda: _identity(embedding, store),
            reopen=_embedding_reopener(embedding, store),
            cache_bytes=embedding.cache_bytes,
            cache_disk_bytes=embedding.cache_disk_bytes,
            weights=lambda: store.find(embedding.source),
        ),
        reranker=None if config.reranker is None else _reranker(config.reranker, store),
        tasks=TaskSetting(open=_task_opener(config, store), memory_bytes=config.serving.task_bytes),
        adapters=AdapterLimits(
            adapters=config.serving.max_adapters, bytes=config.serving.adapter_bytes
        ),
        consolidation=_consolidation(config.consolidation),
        kv=KVSettings(
            host_bytes=config.kv.host_bytes,
            disk_bytes=config.kv.disk_bytes,
            sharing=config.kv.sharing,
        ),
        gates=config.gates,
        policy=config.policy,
        limits=Limits(
            step_s=config.step_ms / 1000,
            calm_step_s=config.calm_step_ms / 1000,
            stretch=config.urgent_stretch,
            prompt_share=config.prompt_share,
            gain=config.batching_gain,
            is_speculative=config.speculation,
        ),
        weights=config.shares,
        max_queued=config.max_queued,
        private_notes_days=config.private_notes_days,
        scheduling=PolicySettings(
            quantum_tokens=config.quantum_tokens,
            ageing_s=config.ageing_s,
            head_start_s=config.head_start_s,
            prompt_cost=config.prompt_cost,
            new_cost=config.new_cost,
        ),
        mailbox_messages=config.mailbox_messages,
        pipe_bytes=config.pipe_bytes,
        trace_events=config.trace_events,
        redactor=config.redactor,
        quota=config.quota,
    )


def _remote(name: str, model: ModelConfig) -> ModelSetting:
    served = model.model
    assert served is not None

    def connect() -> ChatModel:
        spec = RemoteSpec(
            name=name,
            url=model.source,
            model=served,
            context_tokens=model.context_tokens,
            concurrency=model.concurrency,
            key_variable=model.api_key_env,
            session_header=model.session_header,
            timeout_s=model.timeout_s,
            retries=model.retries,
        )
        return open_remote_model(spec)

    prices = Prices(
        price_in=model.price_in,
        price_out=model.price_out,
        money=model.budget,
        tokens=model.budget_tokens,
    )
    return ModelSetting(
        name=name,
        base=model.base or f"{served} at {model.source}",
        driver="remote",
        remote=RemoteSetting(connect, concurrency=model.concurrency, prices=prices),
    )


def _models(config: Config, store: ModelStore) -> dict[str, ModelSetting]:
    found = {
        name: _model(name, model, store, config.tuned_folder)
        for name, model in config.models.items()
    }
    for name, model in config.models.items():
        if model.draft is not None:
            found[name] = replace(found[name], open_draft=found[model.draft].open)
    return found


def _model(name: str, model: ModelConfig, store: ModelStore, tuned_folder: Path) -> ModelSetting:
    if model.driver == "remote":
        return _remote(name, model)
    driver: DriverName = model.driver

    def path() -> Path:
        if model.driver == "scripted":
            return Path(model.source)
        return store.find(model.source)

    def open_at(files: Path) -> LanguageModel:
        return open_language_model(driver, spec(files))

    def open_model() -> LanguageModel:
        return open_language_model(driver, fitted(spec(path()), model, tuned_folder))

    def spec(files: Path) -> ModelSpec:
        return ModelSpec(
            name=name,
            path=files,
            context_tokens=model.context_tokens,
            sequences=model.sequences,
            batch_tokens=model.batch_tokens,
            threads=model.threads,
            device=model.device,
            dtype=model.dtype,
            kv_layout=model.kv_layout,
            kv_cells=model.kv_cells,
            kv_type=model.kv_type,
            flash_attention=model.flash_attention,
            micro_batch_tokens=model.micro_batch_tokens,
        )

    return ModelSetting(
        name=name,
        base=model.base or model.source,
        driver=model.driver,
        open=open_model,
        open_at=open_at,
        processor=model.device,
        weights=None if model.driver == "scripted" else path,
    )


def _embedding_opener(
    embedding: EmbeddingConfig, store: ModelStore
) -> Callable[[], EmbeddingModel]:
    def open_model() -> EmbeddingModel:
        path = store.find(embedding.source)
        spec = ModelSpec(
            embedding.name,
            path,
            device=embedding.device,
            dtype=embedding.dtype,
            threads=embedding.threads,
            query_prefix=embedding.query_prefix,
            document_prefix=embedding.document_prefix,
        )
        return open_embedding_model(spec)

    return open_model


def _reranker(reranker: RerankerConfig, store: ModelStore) -> RerankerSetting:
    def open_model() -> CrossEncoder:
        spec = ModelSpec(
            reranker.name,
            store.find(reranker.source),
            device=reranker.device,
            dtype=reranker.dtype,
            threads=reranker.threads,
        )
        return open_cross_encoder(spec)

    return RerankerSetting(reranker.name, open_model)


def _task_opener(config: Config, store: ModelStore) -> Callable[[Path, str | None], Labeller]:
    embedding = config.embedding

    def open_model(folder: Path, base: str | None) -> Labeller:
        encoder = None
        if read_task(folder).layout != BODY:
            is_configured = base in (None, embedding.name, embedding.source)
            encoder = store.find(embedding.source if is_configured else str(base))
        return open_task_model(folder, encoder, device=config.serving.device)

    return open_model


def _consolidation(consolidation: ConsolidationConfig) -> ConsolidationSetting | None:
    if not consolidation.enabled:
        return None
    return ConsolidationSetting(
        idle_s=consolidation.idle_s,
        every_s=consolidation.every_s,
        tokens=consolidation.tokens,
        wall_s=consolidation.wall_s,
        model=consolidation.model,
    )


def _dimensions(embedding: EmbeddingConfig, store: ModelStore) -> int:
    """The width of the embedding model's vectors, by its files where it is not the default one."""
    if embedding.source == EmbeddingConfig().source:
        return _DEFAULT_DIMENSIONS
    with _as_device_errors(embedding):
        return embedding_dimensions(store.find(embedding.source))


def _identity(embedding: EmbeddingConfig, store: ModelStore) -> VectorModel:
    """What the embedding model computes of a document: the weights and the prefix."""
    with _as_device_errors(embedding):
        weights = embedding_identity(store.find(embedding.source))
    prefix = embedding.document_prefix
    return VectorModel(
        identity=weights if prefix is None else f"{weights} {prefix}",
        source=embedding.source,
        query_prefix=embedding.query_prefix,
        document_prefix=prefix,
    )


def _embedding_reopener(
    embedding: EmbeddingConfig, store: ModelStore
) -> Callable[[VectorModel], EmbeddingModel]:
    """Open the model that a store was made with, if its weights are still those."""

    def reopen(model: VectorModel) -> EmbeddingModel:
        prefixes = {"query_prefix": model.query_prefix, "document_prefix": model.document_prefix}
        earlier = embedding.model_copy(update={"source": model.source, **prefixes})
        if _identity(earlier, store).identity != model.identity:
            raise DeviceError(f"{model.source} is another model now")
        return _embedding_opener(earlier, store)()

    return reopen


@contextmanager
def _as_device_errors(embedding: EmbeddingConfig) -> Generator[None]:
    try:
        yield
    except DeviceError as problem:
        raise SyscallError(
            "device", f"embedding model {embedding.name}: {problem}", device=embedding.name
        ) from problem
