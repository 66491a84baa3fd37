"""torch as a device: one causal language model of transformers, on a CPU or a GPU.

Owns weights, KV and adapters. A step is one forward pass over the tokens of all its sequences,
packed without padding (`torch_packed`), so mixed prefill and decode share every matrix product. The
same code serves `cpu` and `cuda`; numbers are single precision on the one and bfloat16 on the
other unless the spec says otherwise.

Models of the Llama kind have a pass of their own (`torch_llama`), others go through transformers'
modules. A fork shares its source's KV until one of them writes (`torch_kv`). Nothing is counted
before all of a step has succeeded, so a failure on a CPU leaves every sequence as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers import kv_blob, torch_llama, torch_packed
from llmos.drivers.chat import ChatFormat
from llmos.drivers.checks import (
    check_empty,
    check_feeds,
    check_fits,
    check_kept,
    check_sequence,
)
from llmos.drivers.constraint import ConstraintCompiler
from llmos.drivers.contract import (
    Abilities,
    Allocation,
    DeviceError,
    Feed,
    ModelInfo,
    ModelSpec,
    Sampled,
    SequenceId,
)
from llmos.drivers.decoding import Decoding, masks, rows_of, sample
from llmos.drivers.torch_adapters import Span, TorchAdapters
from llmos.drivers.torch_device import use_device
from llmos.drivers.torch_kv import KvShape, KvStore
from llmos.drivers.torch_vocabulary import TorchVocabulary
from llmos.drivers.torch_weights import checkpoint, load_model, load_tokenizer, weights_file
from llmos.syscalls.content import Message
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import ToolSpec

if TYPE_CHECKING:
    import torch

# Rotary tables of these kinds depend on the longest text in the batch, which packing mixes.
_UNSERVED_ROPE = frozenset({"dynamic", "longrope"})
_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})


class TorchLM:
    """An open model. Satisfies `LanguageModel`, whose docstrings hold here.

    `spec.path` is a GGUF file or a transformers folder. Sets torch's number of threads, which is
    one for the whole process. Raises: DeviceError when the file is missing, damaged or of an
    architecture that is not served, or memory does not suffice.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if min(spec.sequences, spec.batch_tokens, spec.context_tokens) < 1:
            raise DeviceError("sequences, batch_tokens and context_tokens must be at least 1")
        dtype = use_device(spec)
        torch_packed.install()
        folder = checkpoint(spec.path)
        self._model: Any = load_model(
            folder, dtype=dtype, device=spec.device, attention=torch_packed.ATTENTION
        )
        tokenizer = load_tokenizer(folder)
        self._vocabulary = TorchVocabulary(tokenizer, _generation_ends(self._model))
        self._info = _describe(spec, self._model, self._vocabulary)
        self._chat = ChatFormat(
            tokenizer.chat_template,
            tokenize=self._vocabulary.tokenize,
            special=self._vocabulary.special,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            begin=self._vocabulary.begin,
        )
        self._constraints = ConstraintCompiler(
            self._vocabulary.pieces[: self._info.vocabulary],
            special=self._vocabulary.special.values(),
            end=self._vocabulary.end_tokens,
            tokenize=self._vocabulary.tokenize,
        )
        self._kv = KvStore(
            _kv_shape(self._model.config),
            sequences=spec.sequences,
            context_tokens=self._info.context_tokens,
            dtype=dtype,
            device=spec.device,
        )
        is_llama = torch_llama.can_serve(self._model.config)
        self._adapters = TorchAdapters(self._model, hooks=not is_llama)
        self._pass: Any = (
            torch_llama.LlamaForward(self._model, self._adapters)
            if is_llama
            else torch_packed.TransformersForward(self._model)
        )
        self._decodings: dict[SequenceId, Decoding] = {}
        self._fingerprint = kv_blob.fingerprint(weights_file(spec.path), f"torch {dtype}")
        # What cannot compute is refused now, and the first step need not set up the libraries.
        self._forward([Feed(0, [min(self._info.end_tokens, default=0)], sample=True)])
        self._kv.trim(0, 0)

    @property
    def info(self) -> ModelInfo:
        return self._info

    # --- any thread ---

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return self._vocabulary.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._vocabulary.detokenize(tokens)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        return self._chat.render(messages, tools=tools, prefix=prefix)

    # --- engine thread: steps ---

    def add(
        self,
        sequence: SequenceId,
        *,
        sampling: Sampling,
        constraint: Constraint | None = None,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        adapter: str | None = None,
    ) -> None:
        self._check_open()
        check_sequence(self._info, sequence)
        if adapter is not None and adapter not in self._adapters:
            raise DeviceError(f"no adapter {adapter} is attached to {self._info.name}")
        self._decodings[sequence] = Decoding(
            sampling=sampling,
            vocabulary=self._info.vocabulary,
            end_tokens=self._info.end_tokens,
            matcher=None if constraint is None else self._constraints.compile(constraint),
            prompt=prompt,
            generated=generated,
            adapter=adapter,
        )

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        self._check_open()
        check_feeds(self._info, feeds, length=self.length, decodings=self._decodings)
        if not feeds:
            return []
        allowed = masks(feeds, self._decodings)
        # The rows of one adapter lie together.
        ordered = sorted(feeds, key=lambda feed: self._decodings[feed.sequence].adapter or "")
        self._adapters.use(self._spans(ordered), tokens=sum(map(_tokens_of, ordered)))
        rows = self._forward(ordered).numpy()
        try:
            runs = sample(ordered, rows, allowed, self._decodings)
        except DeviceError as problem:
            # Samplers and constraints of the sequences before this one have moved on.
            raise DeviceError(str(problem), is_fatal=True) from problem
        for run in runs:
            # Wrong guesses stay behind in memory, uncounted, and are written over.
            self._kv.advance(run.feed.sequence, run.held_tokens)
        return [one for run in runs for one in run.sampled]

    def _spans(self, feeds: Sequence[Feed]) -> list[Span]:
        """The rows of each adapter; feeds of one adapter lie together."""
        spans: list[Span] = []
        row = asked = 0
        for feed in feeds:
            rows = slice(row, row := row + _tokens_of(feed))
            wanted = slice(asked, asked := asked + rows_of(feed))
            adapter = self._decodings[feed.sequence].adapter
            if adapter is None:
                continue
            if spans and spans[-1].adapter == adapter:
                last = spans.pop()
                rows = slice(last.rows.start, rows.stop)
                wanted = slice(last.asked.start, wanted.stop)
            spans.append(Span(adapter, rows, wanted))
        return spans

    def _forward(self, feeds: Sequence[Feed]) -> torch.Tensor:
        """Write the feeds' KV and give the logits that are asked for, `(asked, vocabulary)`, in
        main memory. Raises: DeviceError; no sequence has grown.
        """
        import torch

        try:
            with torch.inference_mode():
                logits = self._compute(feeds)
        except DeviceError:
            raise
        except torch.OutOfMemoryError as problem:
            torch.cuda.empty_cache()
            raise DeviceError(f"{self._info.device} is out of memory: {problem}") from problem
        except Exception as problem:
            # A GPU whose kernel failed computes nothing any more.
            is_fatal = self._info.device != "cpu"
            raise DeviceError(f"torch failed to compute: {problem}", is_fatal=is_fatal) from problem
        if not logits.amax(dim=1).isfinite().all():
            raise DeviceError("the model's output is not finite; its file or an adapter is damaged")
        return logits

    def _compute(self, feeds: Sequence[Feed]) -> torch.Tensor:
        import torch

        device = self._info.device
        tokens: list[int] = []
        positions: list[int] = []
        asked: list[int] = []
        parts: list[torch_packed.Part] = []
        for feed in feeds:
            held, new = self._kv.length(feed.sequence), _tokens_of(feed)
            parts.append(torch_packed.part(new, held, self._kv.reserve(feed.sequence, new)))
            tokens.extend((*feed.tokens, *feed.draft))
            positions.extend(range(held, held + new))
            asked.extend(range(len(tokens) - rows_of(feed), len(tokens)))
        step = torch_packed.PackedStep(
            tokens=torch.tensor(tokens, device=device),
            positions=torch.tensor(positions, device=device),
            asked=torch.tensor(asked, dtype=torch.long, device=device),
            parts=parts,
        )
        # A head may be padded beyond the tokens that exist.
        logits: torch.Tensor = self._pass(step)[:, : self._info.vocabulary]
        return logits.float().cpu()

    # --- engine thread: KV ---

    def length(self, sequence: SequenceId) -> int:
        self._check_open()
        check_sequence(self._info, sequence)
        return self._kv.length(sequence)

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        check_empty(target, self.length(target))
        check_kept(self._info, source, tokens, self.length(source))
        self._kv.fork(source, target, tokens)

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        check_kept(self._info, sequence, tokens, self.length(sequence))
        self._kv.trim(sequence, tokens)

    def save(self, sequence: SequenceId) -> bytes:
        import torch

        tokens = self.length(sequence)
        state = self._kv.read(sequence).flatten().view(torch.uint8)
        return kv_blob.pack(self._fingerprint, tokens, state.numpy())

    def restore(self, blob: bytes, sequence: SequenceId) -> None:
        check_empty(sequence, self.length(sequence))
        saved = kv_blob.unpack(blob, self._fingerprint)
        check_fits(self._info, saved.tokens)
        try:
            self._kv.write(sequence, saved.tokens, saved.payload)
        except (ValueError, RuntimeError) as problem:
            raise DeviceError(f"the saved sequence cannot be restored: {problem}") from problem

    # --- engine thread: adapters and the end ---

    def attach(self, name: str, path: Path) -> None:
        self._check_open()
        self._adapters.attach(name, path)

    def detach(self, name: str) -> None:
        self._check_open()
        for sequence, decoding in self._decodings.items():
            if decoding.adapter == name and self._kv.length(sequence):
                raise DeviceError(f"sequence {sequence} uses the adapter {name}; trim it first")
        self._adapters.detach(name)
        self._decodings = {
            sequence: decoding
            for sequence, decoding in self._decodings.items()
            if decoding.adapter != name
        }

    def allocations(self) -> list[Allocation]:
        if self._model is None:
            return []
        adapters = self._adapters.sizes()
        copies = self._adapters.side_by_side_bytes
        return [
            Allocation("weights", sum(one.nbytes for one in self._model.parameters())),
            Allocation("kv_cache", self._kv.bytes),
            *(Allocation(f"adapter {name}", size) for name, size in adapters.items()),
            *([Allocation("adapters side by side", copies)] if copies else []),
        ]

    def close(self) -> None:
        self._model = self._pass = None
        self._adapters = TorchAdapters(None, hooks=False)
        self._decodings.clear()
        for sequence in range(self._info.sequences):
            self._kv.trim(sequence, 0)

    def _check_open(self) -> None:
        if self._model is None:
            raise DeviceError(f"{self._info.name} is closed", is_fatal=True)


def _tokens_of(feed: Feed) -> int:
    return len(feed.tokens) + len(feed.draft)


# --- opening --------------------------------------------------------------------------------------


def _describe(spec: ModelSpec, model: Any, vocabulary: TorchVocabulary) -> ModelInfo:
    """The model as opened. Raises: DeviceError for an architecture that is not served."""
    settings = model.config
    layers = set(getattr(settings, "layer_types", None) or ("full_attention",))
    rope = (getattr(settings, "rope_parameters", None) or {}).get("rope_type", "default")
    if layers - _SERVED_LAYERS or rope in _UNSERVED_ROPE:
        what = ", ".join(sorted(layers - _SERVED_LAYERS)) or f"{rope} rotary embedding"
        raise DeviceError(f"{settings.model_type} models are not served: {what}")
    # Within its window, sliding attention is full attention.
    window = getattr(settings, "sliding_window", None) or settings.max_position_embeddings
    return ModelInfo(
        name=spec.name,
        driver="torch",
        device=spec.device,
        architecture=settings.model_type,
        parameters=model.num_parameters(),
        vocabulary=min(vocabulary.size, settings.vocab_size),
        context_tokens=min(spec.context_tokens, settings.max_position_embeddings, window),
        sequences=spec.sequences,
        batch_tokens=spec.batch_tokens,
        kv_bytes_per_token=_kv_shape(settings).numbers * model.dtype.itemsize,
        end_tokens=vocabulary.end_tokens,
        weights_format=str(model.dtype).removeprefix("torch."),
        # Rounding follows the shape of the batch, so a near tie may go either way.
        abilities=Abilities(can_mix_adapters=True, can_verify=True, is_deterministic=False),
    )


def _kv_shape(settings: Any) -> KvShape:
    heads: int = settings.num_attention_heads
    return KvShape(
        layers=settings.num_hidden_layers,
        heads=getattr(settings, "num_key_value_heads", None) or heads,
        dim=getattr(settings, "head_dim", None) or settings.hidden_size // heads,
    )


def _generation_ends(model: Any) -> list[int]:
    """The tokens that the model's generation settings end by."""
    settings = model.generation_config
    ends: Any = None if settings is None else settings.eos_token_id
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)
