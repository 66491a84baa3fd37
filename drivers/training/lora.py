"""Base models ready to train, and the LoRA adapters trained on them: on a model and on disk.

Owns how a base is loaded, how it reads conversations (as the torch driver does when it serves), and
an adapter's files. Refuses to know data and gradients. The adapters are peft's.
Source: Hu et al. 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmos.drivers.adapter_folder import SETTINGS, WEIGHTS, read_adapter
from llmos.drivers.chat import ChatFormat
from llmos.drivers.torch_vocabulary import TorchVocabulary
from llmos.drivers.torch_weights import checkpoint, load_model, load_tokenizer
from llmos.drivers.training.instruct import Chat
from llmos.syscalls.content import Message, assistant, user
from llmos.syscalls.errors import SyscallError


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

    def render(self, messages: Sequence[Message], /) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        return self._format.render(messages)

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


def load_base(path: Path, *, device: str, threads: int) -> tuple[Any, Chat]:
    """A base model in float32, all weights frozen, and how it reads conversations.

    Raises: DeviceError.
    """
    import torch

    torch.set_num_threads(threads)
    folder = checkpoint(path)
    model = load_model(folder, dtype=torch.float32, device=device, attention="sdpa")
    return model, TokenizerChat(load_tokenizer(folder))


def add_adapter(model: Any, *, rank: int, seed: int) -> Any:
    """The model with a new trainable adapter of this rank on each linear layer but the last."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, settings)


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with a saved adapter on it. Raises: DeviceError for a damaged one."""
    from peft import PeftModel

    read_adapter(folder)  # its errors are clearer than peft's
    return PeftModel.from_pretrained(model, str(folder))


def save_adapter(model: Any, folder: Path) -> None:
    """Write a peft adapter folder; a reader at any moment finds a whole adapter, old or new.

    Raises: SyscallError("storage").
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial, save_embedding_layers=False)
        folder.mkdir(parents=True, exist_ok=True)
        # The settings are the same all through a run, so replacing file by file is atomic.
        for name in (SETTINGS, WEIGHTS):
            with (partial / name).open("rb") as written:
                os.fsync(written.fileno())
            (partial / name).replace(folder / name)
        shutil.rmtree(partial)
    except OSError as problem:
        raise SyscallError(
            "storage", f"the adapter cannot be written to {folder}: {problem}", path=str(folder)
        ) from problem
