"""The objective `pretrain`: the next token of raw text, for a known base or a new small model.

Owns how text is cut into rows, the tokenizer of a new model and its first weights. Texts follow one
another with an end token between them, and no token of the corpus but a last odd one is lost.
Source of the tokenizer: byte-level BPE, Radford et al. 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers.rows.kinds import TextRow
from llmos.drivers.training.checkpoints import write_folder
from llmos.drivers.training.decoder import Decoder, open_decoder
from llmos.drivers.training.instruct import built
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.next_token import NextToken
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.task import Built, Encoded, Item
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.recipe import ScratchSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
# A new model learns from nothing: the rate at which it does best is far above that of a known one.
SCRATCH_RATE = 1e-3


class PretrainTask(NextToken):
    """Trains a decoder on text. Satisfies `Task`; a payload is 1: all but the first token count."""

    def __init__(self, decoder: Decoder, *, max_length_tokens: int) -> None:
        super().__init__(decoder)
        self._tokenizer = decoder.tokenizer
        self._max_length_tokens = max_length_tokens

    def encode(self, rows: Sequence[TextRow], /) -> Encoded:
        """Rows of `max_length_tokens`, each beginning with the last token of the one before."""
        end = self._tokenizer.eos_token_id
        items: list[Item] = []
        held: list[int] = [] if end is None else [end]
        origins: list[str] = []
        most = self._max_length_tokens
        for row in rows:
            held += self._tokenizer(row.text, add_special_tokens=False)["input_ids"]
            held += [] if end is None else [end]
            origins.append(row.origin)
            start = 0
            while len(held) - start >= most:
                items.append(Item(tuple(held[start : start + most]), 1, _span(origins)))
                start += most - 1
                origins = [row.origin]
            held = held[start:]
        if len(held) > 1:
            items.append(Item(tuple(held), 1, _span(origins)))
        return Encoded(tuple(items))


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """A decoder that goes on learning from text, or a new one.

    Raises: DeviceError; SyscallError("invalid") for a new model with a method that adapts one.
    """
    if job.scratch is None:
        decoder = open_decoder(job, device)
        return built(decoder, _task(decoder, job), job)
    if job.method != "full":
        raise SyscallError(
            "invalid",
            f"method: a new model has nothing to adapt by {job.method}; say full",
            field="method",
        )
    # Made once and kept: a tokenizer trained again may order equal merges differently.
    folder = Path(job.output).with_name("scratch")
    if not folder.is_dir():
        write_folder(folder, lambda place: make_model(rows.train, job, place))
    decoder = open_decoder(job.model_copy(update={"base": str(folder)}), device)
    return built(decoder, _task(decoder, job), job)._replace(rate=SCRATCH_RATE)


def _task(decoder: Decoder, job: TrainJob) -> PretrainTask:
    return PretrainTask(decoder, max_length_tokens=job.max_length_tokens)


def make_model(rows: Sequence[TextRow], job: TrainJob, folder: Path) -> None:
    """Write a new model of random weights and the tokenizer of its text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = job.scratch
    assert shape is not None
    tokenizer = train_tokenizer((row.text for row in rows), shape)
    tokenizer.save_pretrained(folder)
    end: Any = tokenizer.eos_token_id
    torch.manual_seed(job.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=_multiple(shape.width * 8 / 3, 16),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max(2048, job.max_length_tokens),
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], shape: ScratchSpec) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text has tokens, and decodes to itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain: Any = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, bos_token=END)


def _multiple(size: float, of: int) -> int:
    return max(of, round(size / of) * of)


def _span(origins: Sequence[str]) -> str:
    return origins[0] if len(origins) == 1 else f"{origins[0]} to {origins[-1]}"
