"""Which model a name means to those that measure: a configured one, a base, a version, a slot.

Owns the order in which names are looked up. Refuses to know what is done with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llmos.kernel.settings import ModelSetting, Settings
from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning_results import ModelVersion


class Target(NamedTuple):
    """What is meant: a configured model, alone or with a version; `name` is what people say.

    `model` generates; None for what answers alone, and for weights that no configured model has.
    """

    name: str
    model: str | None
    version: ModelVersion | None

    @property
    def kind(self) -> str:
        """The version's kind; "model" without one."""
        return "model" if self.version is None else self.version.kind

    @property
    def adapter(self) -> str | None:
        """What a generation names beside the model: a version with weights."""
        is_weights = self.version is not None and self.version.kind in ("adapter", "full")
        return self.name if is_weights else None

    def generating(self) -> str:
        """The model that generates. Raises: SyscallError("invalid") where there is none."""
        if self.model is None:
            raise SyscallError(
                "invalid",
                f"model: {self.name} generates nothing here: no configured model has its weights",
                field="model",
            )
        return self.model

    @property
    def objective(self) -> str:
        """What it was made for; the answers of a version that is prompted are what it has."""
        made = "instruct" if self.version is None else self.version.card.get("objective")
        if self.kind == "prompt" and made == "instruct":
            return "generate"
        return str(made or "instruct")


class Targets:
    def __init__(self, settings: Settings, registry: Callable[[], Registry]) -> None:
        self._settings = settings
        self._registry = registry

    def of(self, model: str | None, adapter: str | None = None) -> Target:
        """The target of a call's names; None is the default model.

        Raises: SyscallError: "unknown_model", "not_available".
        """
        models = self._settings.models
        if adapter is not None:
            return self._of_version(self._registry().get(adapter), model)
        name = model or self._settings.default_model
        if name is None:
            raise SyscallError("unknown_model", "no model is named and none is the default")
        if name in models or name in self._settings.classes:
            return Target(name, name, None)
        if self._settings.embedding is not None and name == self._settings.embedding.name:
            return Target(name, None, None)
        for setting in models.values():
            if setting.base == name:
                return Target(name, setting.name, None)
        registry = self._registry()
        return self._of_version(registry.get(registry.promoted(name) or name), None)

    def serves(self, base: str | None) -> Target:
        """A configured model of a base, the default one if it is of that base; None is any.

        Raises: SyscallError("not_available").
        """
        setting = self._configured(base)
        if setting is None:
            raise SyscallError(
                "not_available", f"no model of the base {base} is configured", field="base"
            )
        return Target(setting.base, setting.name, None)

    def _of_version(self, version: ModelVersion, model: str | None) -> Target:
        if version.kind == "task":
            return Target(version.name, None, version)
        if model is None:
            setting = self._configured(version.base)
            model = None if setting is None else setting.name
        return Target(version.name, model, version)

    def _configured(self, base: str | None) -> ModelSetting | None:
        """As `serves`; a base that was trained here leads to the one that it began from."""
        full = {one.name: one for one in self._registry().list() if one.kind == "full"}
        while base in full and full[base].base != base:
            base = full[base].base
        models = self._settings.models
        default = models.get(self._settings.default_model or "")
        for setting in (*([default] if default else []), *models.values()):
            if base is None or base in (setting.base, setting.name):
                return setting
        return None
