"""A deterministic language model without weights, for tests of everything above the drivers.

Its tokens are bytes and three special ones. The next token is a pure function of the sequence's
tokens: it follows the reply that the script gives to the last user text, or a pseudo text made from
a hash of it. Sampling, penalties and constraints act on its logits as on a real model's, and every
misuse of the contract is refused, so a kernel that passes here keeps the contract.

A sequence is kept as a string whose characters are the token ids: searching it is one call.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from llmos.drivers import kv_blob
from llmos.drivers.chat import ChatFormat
from llmos.drivers.checks import check_empty, check_feeds, check_fits, check_kept, check_sequence
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
from llmos.drivers.decoding import Decoding, masks, sample
from llmos.drivers.sampling import Row
from llmos.syscalls.content import Message
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import ToolSpec

Script = Mapping[str, str] | Callable[[str], str]

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
VOCABULARY = 259
_START, _END = chr(256), chr(257)
_END_TOKENS = frozenset({257, 258})
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_WORDS = (
    "amber", "river", "stone", "lantern", "quiet", "harbour", "seven", "maps", "under", "winter",
    "bridge", "copper", "garden", "light", "signal", "paper", "north", "wheel", "morning", "glass",
)  # fmt: skip

# The scripted token is far above the rest; of the rest, what closes JSON is a little above, so that
# a constrained reply ends.
_SCRIPTED_LOGIT, _QUOTE_LOGIT, _CLOSING_LOGIT = 20.0, 4.0, 2.0
_NOISE: Row = np.random.Generator(np.random.PCG64(0)).random(VOCABULARY, np.float32)
_QUOTE, _CLOSING = ord('"'), np.array([*b"}],:", 257], np.int64)


class Scripted:
    """The scripted model. Satisfies `LanguageModel`, whose docstrings hold here.

    `script` gives replies by the last user text; a text that it does not know, and every text when
    it is empty, gets the pseudo text. An adapter begins its replies with its name,
    as far as an `@`. `on_step` runs at the start of each step, on the engine thread: a test may
    wait in it, or raise.
    """

    def __init__(
        self,
        spec: ModelSpec | None = None,
        *,
        script: Script | None = None,
        on_step: Callable[[Sequence[Feed]], None] | None = None,
        abilities: Abilities | None = None,
    ) -> None:
        spec = spec or ModelSpec("scripted", Path("scripted"))
        self._info = ModelInfo(
            name=spec.name,
            driver="scripted",
            device=spec.device,
            architecture="script",
            parameters=0,
            vocabulary=VOCABULARY,
            context_tokens=spec.context_tokens,
            sequences=spec.sequences,
            batch_tokens=spec.batch_tokens,
            kv_bytes_per_token=2,
            end_tokens=_END_TOKENS,
            weights_format="none",
            abilities=abilities or Abilities(can_mix_adapters=True, can_verify=True),
        )
        self._script: Script = {} if script is None else script
        self._on_step = on_step
        self._failures: list[Exception] = []
        self._held = [""] * spec.sequences
        self._decodings: dict[SequenceId, Decoding] = {}
        self._adapters: set[str] = set()
        self._is_open = True
        self._fingerprint = hashlib.sha256(spec.name.encode()).digest()[:16]
        self._chat = ChatFormat(_TEMPLATE, tokenize=self.tokenize, special=SPECIAL)
        self._constraints = ConstraintCompiler(
            [*(bytes([byte]) for byte in range(256)), *(text.encode() for text in SPECIAL)],
            special=SPECIAL.values(),
            end=_END_TOKENS,
            tokenize=self.tokenize,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def fail_next_step(self, error: Exception) -> None:
        """Make the next step raise `error` instead of running; several calls queue up."""
        self._failures.append(error)

    # --- any thread ---

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if not special:
            return list(text.encode("utf-8", errors="replace"))
        ids: list[int] = []
        while text:
            first = min(SPECIAL, key=lambda mark: text.find(mark) % (len(text) + 1))
            before, found, text = text.partition(first)
            ids.extend(before.encode("utf-8", errors="replace"))
            ids.extend([SPECIAL[first]] if found else [])
        return ids

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return bytes(token for token in tokens if token < 256)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        return self._chat.render(messages, tools=tools, prefix=prefix)

    # --- engine thread ---

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
        if adapter is not None:
            self._check_attached(adapter)
        if constraint is not None:
            self._check_ability(self._info.abilities.can_constrain, "constrain")
        self._decodings[sequence] = Decoding(
            sampling=sampling,
            vocabulary=VOCABULARY,
            end_tokens=_END_TOKENS,
            matcher=None if constraint is None else self._constraints.compile(constraint),
            prompt=prompt,
            generated=generated,
            adapter=adapter,
        )

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        self._check_open()
        if self._on_step is not None:
            self._on_step(feeds)
        if self._failures:
            raise self._failures.pop(0)
        check_feeds(self._info, feeds, length=self.length, decodings=self._decodings)
        allowed = masks(feeds, self._decodings)
        for feed in feeds:
            self._held[feed.sequence] += "".join(map(chr, feed.tokens))
        rows = [row for feed in feeds if feed.sample for row in self._rows(feed)]
        runs = sample(feeds, np.reshape(rows, (-1, VOCABULARY)), allowed, self._decodings)
        for run in runs:
            guessed = run.held_tokens - len(run.feed.tokens)
            self._held[run.feed.sequence] += "".join(map(chr, run.feed.draft[:guessed]))
        return [one for run in runs for one in run.sampled]

    def length(self, sequence: SequenceId) -> int:
        check_sequence(self._info, sequence)
        return len(self._held[sequence])

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        self._check_open()
        self._check_ability(self._info.abilities.can_fork, "fork")
        check_empty(target, self.length(target))
        check_kept(self._info, source, tokens, self.length(source))
        self._held[target] = self._held[source][:tokens]

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        self._check_open()
        check_kept(self._info, sequence, tokens, self.length(sequence))
        self._held[sequence] = self._held[sequence][:tokens]

    def save(self, sequence: SequenceId) -> bytes:
        self._check_open()
        self._check_ability(self._info.abilities.can_save, "save")
        held = self._held[sequence]
        return kv_blob.pack(self._fingerprint, self.length(sequence), held.encode("utf-16-le"))

    def restore(self, blob: bytes, sequence: SequenceId) -> None:
        self._check_open()
        self._check_ability(self._info.abilities.can_save, "save")
        check_empty(sequence, self.length(sequence))
        saved = kv_blob.unpack(blob, self._fingerprint)
        check_fits(self._info, saved.tokens)
        self._held[sequence] = str(saved.payload, "utf-16-le")

    def attach(self, name: str, path: Path) -> None:
        """Any path will do: there is nothing in it to read."""
        self._check_open()
        self._check_ability(self._info.abilities.can_attach, "attach")
        if name in self._adapters:
            raise DeviceError(f"an adapter {name} is attached already")
        self._adapters.add(name)

    def detach(self, name: str) -> None:
        self._check_attached(name)
        for sequence, decoding in self._decodings.items():
            if decoding.adapter == name and self._held[sequence]:
                raise DeviceError(
                    f"sequence {sequence} uses the adapter {name}; trim it to 0 first"
                )
        self._adapters.remove(name)

    def allocations(self) -> list[Allocation]:
        return [Allocation("kv_cache", 2 * sum(map(len, self._held)))]

    def close(self) -> None:
        self._is_open = False
        self._held = [""] * self._info.sequences
        self._decodings.clear()

    # --- the script ---

    def _rows(self, feed: Feed) -> list[Row]:
        """The logits after the feed's last token and after each guess of its draft."""
        held, adapter = self._held[feed.sequence], self._decodings[feed.sequence].adapter
        texts = itertools.accumulate(map(chr, feed.draft), initial=held)
        return [self._logits(text, adapter) for text in texts]

    def _logits(self, held: str, adapter: str | None) -> Row:
        noise = zlib.crc32(held[-8:].encode("utf-16-le"), len(held)) % VOCABULARY
        row = np.roll(_NOISE, noise)
        row[_CLOSING] += _CLOSING_LOGIT
        row[_QUOTE] += _QUOTE_LOGIT
        row[self._next_token(held, adapter)] = _SCRIPTED_LOGIT
        return row

    def _next_token(self, held: str, adapter: str | None) -> int:
        """The next byte of the reply, or the end token after its last."""
        said, answered = _split(held)
        reply = self._reply(said)
        if adapter is not None:
            reply = f"{adapter.partition('@')[0]}: {reply}"
        data = reply.encode().decode("latin-1")
        if data in answered:
            return ord(_END)
        # The answer may begin with a prefix that the reply does not have.
        written = next(n for n in range(len(data), -1, -1) if answered.endswith(data[:n]))
        return ord(data[written])

    def _reply(self, said: str) -> str:
        found = self._script.get(said) if isinstance(self._script, Mapping) else self._script(said)
        return pseudo_text(said) if found is None else found

    # --- strictness ---

    def _check_open(self) -> None:
        if not self._is_open:
            raise DeviceError(f"{self._info.name} is closed", is_fatal=True)

    def _check_attached(self, name: str) -> None:
        if name not in self._adapters:
            raise DeviceError(f"no adapter {name} is attached to {self._info.name}")

    def _check_ability(self, has_ability: bool, what: str) -> None:
        if not has_ability:
            raise DeviceError(f"{self._info.name} cannot {what}")


def pseudo_text(said: str) -> str:
    """What the model answers to a text that its script does not know: five to twelve words."""
    digest = hashlib.sha256(said.encode("utf-8", errors="replace")).digest()
    words = [_WORDS[byte % len(_WORDS)] for byte in digest[1 : 6 + digest[0] % 8]]
    return " ".join(words).capitalize() + "."


def _split(held: str) -> tuple[str, str]:
    """The last user text, and the answer to it so far.

    Without any turn, as under a plain prompt, all of it is the answer to nothing.
    """
    turns = held.split(_START)
    if len(turns) == 1:
        return "", held
    said = next((turn for turn in reversed(turns) if turn.startswith("user\n")), "user\n")
    said = said.removeprefix("user\n").partition(_END)[0]
    _, _, answered = turns[-1].partition("\n")
    return said.encode("latin-1").decode("utf-8", errors="replace"), answered
