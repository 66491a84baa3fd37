"""How a model that trains reads conversations: exactly as when it serves.

Owns the rendering by a tokenizer's chat template. Refuses to know rows and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llmos.drivers.chat import ChatFormat
from llmos.drivers.torch_vocabulary import TorchVocabulary
from llmos.syscalls.content import Message, assistant, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec


class Chat(Protocol):
    """How the model that trains reads conversations when it serves."""

    def render(
        self, messages: Sequence[Message], /, *, tools: Sequence[ToolSpec] = ()
    ) -> list[int]:
        """Token ids of a conversation in which tools are offered, ready for the next answer."""
        ...

    def tokenize(self, text: str, /) -> list[int]:
        """Token ids of a text, none of it read as markup."""
        ...

    @property
    def end_token(self) -> int:
        """The token by which the model ends its answer."""
        ...


class TokenizerChat:
    """How a model with this tokenizer reads conversations.

    Raises: DeviceError for a chat template that cannot be read; SyscallError("not_available") when
    there is no token to end an answer by.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._vocabulary = TorchVocabulary(tokenizer)
        self._format = ChatFormat(
            tokenizer.chat_template,
            tokenize=self._vocabulary.tokenize,
            special=self._vocabulary.special,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            begin=self._vocabulary.begin,
        )
        self.end_token = self._find_end(tokenizer.eos_token_id)

    def render(
        self, messages: Sequence[Message], /, *, tools: Sequence[ToolSpec] = ()
    ) -> list[int]:
        """Token ids of a conversation in which tools are offered, ready for the next answer."""
        return self._format.render(messages, tools=tools)

    def tokenize(self, text: str, /) -> list[int]:
        """Token ids of a text, none of it read as markup."""
        return self._vocabulary.tokenize(text)

    def _find_end(self, otherwise: int | None) -> int:
        """The end token that the template writes after an answer, else the tokenizer's own."""
        prompt = self.render((user("a"),))
        after = self.render((user("a"), assistant("b")))[len(prompt) :]
        ends = self._vocabulary.end_tokens
        found = next((token for token in after if token in ends), otherwise)
        if found is None:
            raise SyscallError("not_available", "the base model has no token that ends an answer")
        return found
