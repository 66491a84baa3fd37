"""llmos: an operating system for LLM agents.

The names below load when first used: `import llmos` alone costs neither pydantic nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.booting import boot
    from llmos.config import Config, EmbeddingConfig, ModelConfig, load_config
    from llmos.syscalls.content import Message, assistant, system, tool_result, user
    from llmos.syscalls.errors import ConfigError, KernelPanic, Killed, LlmosError, SyscallError
    from llmos.syscalls.options import (
        ChoiceConstraint,
        GrammarConstraint,
        JsonSchemaConstraint,
        RegexConstraint,
        Sampling,
    )
    from llmos.syscalls.rights import ALL_CAPABILITIES, Capabilities, Quota
    from llmos.syscalls.tool import tool

_HOMES = {
    "llmos.agents.handle": ("OS",),
    "llmos.booting": ("boot",),
    "llmos.config": ("Config", "EmbeddingConfig", "ModelConfig", "load_config"),
    "llmos.syscalls.content": ("Message", "assistant", "system", "tool_result", "user"),
    "llmos.syscalls.errors": (
        "ConfigError",
        "KernelPanic",
        "Killed",
        "LlmosError",
        "SyscallError",
    ),
    "llmos.syscalls.options": (
        "ChoiceConstraint",
        "GrammarConstraint",
        "JsonSchemaConstraint",
        "RegexConstraint",
        "Sampling",
    ),
    "llmos.syscalls.rights": ("ALL_CAPABILITIES", "Capabilities", "Quota"),
    "llmos.syscalls.tool": ("tool",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ALL_CAPABILITIES",
    "OS",
    "Capabilities",
    "ChoiceConstraint",
    "Config",
    "ConfigError",
    "EmbeddingConfig",
    "GrammarConstraint",
    "JsonSchemaConstraint",
    "KernelPanic",
    "Killed",
    "LlmosError",
    "Message",
    "ModelConfig",
    "Quota",
    "RegexConstraint",
    "Sampling",
    "SyscallError",
    "assistant",
    "boot",
    "load_config",
    "system",
    "tool",
    "tool_result",
    "user",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'llmos' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
