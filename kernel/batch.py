"""What one step feeds: the planner's shares as feeds, with guesses where they pay.

Stands between the generations of a device and the pure planner: it knows the policy's order, whose
adapter's turn it is, and what a generation is likely to need, and tells the pace what a step took.
Engine thread only; belongs to one open driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from llmos.drivers.contract import MOST_DRAFT_TOKENS, Feed, ModelInfo
from llmos.kernel.draft_model import Ask, DraftModel
from llmos.kernel.generation import Generation
from llmos.kernel.pace import Pace
from llmos.kernel.planner import Limits, Planner, Share, Want
from llmos.kernel.policy import Policy, is_urgent
from llmos.kernel.speculation import Drafter

# Lengths of drafts where each other length costs a pass of its own.
_EVEN_LENGTHS = (15, 7, 3, 0)
# Weight of the last generation in what is expected of the next ones.
_LEARN = 0.1


class Fed(NamedTuple):
    """A generation's part in a step."""

    generation: Generation
    feed: Feed
    is_decode: bool


class Batcher:
    """Puts together the steps of one device."""

    def __init__(
        self,
        info: ModelInfo,
        policy: Policy,
        limits: Limits,
        pace: Pace,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._info = info
        self._draft_model = draft_model
        self._policy = policy
        self._limits = replace(limits, batch_tokens=info.batch_tokens)
        self._pace = pace
        self._planner = Planner(self._limits, pace)
        self._last_adapter: str | None = None
        self._output_tokens: float | None = None  # of a generation, on average

    def plan(self, runnable: Sequence[Generation]) -> list[Fed]:
        """What to feed of the generations that have a sequence, decodes first."""
        by_key = {g.entry.key: g for g in runnable}
        ordered = [by_key[e.key] for e in self._policy.order([g.entry for g in runnable])]
        if not self._info.abilities.can_mix_adapters:
            ordered = self._one_adapter(ordered)
        wants = [self._want(generation) for generation in ordered]
        batch = [self._fed(by_key[share.key], share) for share in self._planner.plan(wants)]
        is_calm = not any(want.is_urgent for want in wants)
        return self._with_drafts(batch) if self._can_draft and is_calm else batch

    def learn(self, batch: Sequence[Fed], seconds: float) -> None:
        """Learn what a step took."""
        rows = sum(len(fed.feed.tokens) for fed in batch if fed.is_decode)
        prompt_tokens = sum(len(fed.feed.tokens) for fed in batch if not fed.is_decode)
        guesses = sum(len(fed.feed.draft) for fed in batch)
        lengths = {len(fed.feed.draft) for fed in batch if fed.is_decode}
        if self._is_split(batch) and len(lengths) > 1:
            prompt_tokens += guesses
        else:
            rows += guesses
        self._pace.observe(rows=rows, prompt_tokens=prompt_tokens, seconds=seconds)

    def expect_urgent(self) -> None:
        """Somebody urgent will come: keep steps short for a while."""
        self._planner.expect_urgent()

    def left(self, generation: Generation) -> None:
        """A generation is over, however it ended."""
        if self._draft_model is not None:
            self._draft_model.ended(generation)

    def ended(self, generation: Generation) -> None:
        """Learn how long an answer was."""
        made, expected = len(generation.output), self._output_tokens
        self._output_tokens = made if expected is None else expected + _LEARN * (made - expected)

    def _want(self, generation: Generation) -> Want:
        return Want(
            key=generation.entry.key,
            pending=generation.pending,
            is_decoding=bool(generation.output),
            is_urgent=is_urgent(self._policy, generation.entry),
            remaining_tokens=self._remaining(generation),
            last_step=generation.last_step,
        )

    def _remaining(self, generation: Generation) -> int:
        """How many tokens a generation will still say, as far as anybody knows."""
        left = generation.order.max_tokens - len(generation.output)
        if self._output_tokens is not None:
            left = min(left, max(1, round(self._output_tokens)))
        return left

    def _fed(self, generation: Generation, share: Share) -> Fed:
        assert generation.sequence is not None
        start = generation.fed
        tokens = generation.known(start, start + share.tokens)
        feed = Feed(generation.sequence, tokens, sample=share.tokens == generation.pending)
        return Fed(generation, feed, share.is_decode)

    def _with_drafts(self, batch: Sequence[Fed]) -> list[Fed]:
        """The same step with guesses where they pay."""
        pace, limits = self._pace, self._limits
        prompt_tokens = sum(len(fed.feed.tokens) for fed in batch if not fed.is_decode)
        rows = sum(len(fed.feed.tokens) for fed in batch) - prompt_tokens
        others = sum(fed.is_decode for fed in batch) - 1
        is_split = self._is_split(batch)
        guesses_left = MOST_DRAFT_TOKENS
        drafted: list[Fed] = []
        for fed in batch:
            generation, feed = fed.generation, fed.feed
            if not fed.is_decode:
                drafted.append(fed)
                continue
            guessed = MOST_DRAFT_TOKENS - guesses_left

            def step_s(guesses: int, guessed: int = guessed) -> float:
                first = 0 if is_split else guessed + guesses
                second = guessed + guesses if is_split else 0
                step_s = pace.step_s(rows=rows + first, prompt_tokens=prompt_tokens)
                return step_s + pace.pass_s(second)

            # The token after the last guess needs room as well.
            most = min(
                generation.order.max_tokens - len(generation.output) - 1,
                self._info.context_tokens - generation.length - 1,
                limits.batch_tokens - rows - prompt_tokens - guessed,
                guesses_left,
            )
            draft = self._drafter(generation).propose(most=most, step_s=step_s, others=others)
            if is_split:
                draft = draft[: _even_length(len(draft))]
            guesses_left -= len(draft)
            drafted.append(fed._replace(feed=replace(feed, draft=draft)))
        if self._draft_model is None or guesses_left < MOST_DRAFT_TOKENS:
            return drafted
        return self._with_model_drafts(batch, self._draft_model)

    def _with_model_drafts(self, batch: Sequence[Fed], model: DraftModel) -> list[Fed]:
        """The same step with guesses of the draft model, where nothing was found in the texts."""
        pace = self._pace
        prompt_tokens = sum(len(fed.feed.tokens) for fed in batch if not fed.is_decode)
        rows = sum(len(fed.feed.tokens) for fed in batch) - prompt_tokens
        decodes = [fed.generation for fed in batch if fed.is_decode]
        # A constraint knows better what can follow than a model that is not told of it.
        free = [g for g in decodes if g.order.constraint is None]
        if not free:
            return list(batch)
        is_split = self._is_split(batch) and len(free) < len(decodes)
        left = min(MOST_DRAFT_TOKENS, self._limits.batch_tokens - rows - prompt_tokens)
        asks = [
            Ask(
                generation,
                min(
                    left // len(free),
                    generation.order.max_tokens - len(generation.output) - 1,
                    self._info.context_tokens - generation.length - 1,
                ),
                self._remaining(generation),
            )
            for generation in free
        ]

        def step_s(length: int) -> float:
            guesses = length * len(free)
            if is_split:
                return pace.step_s(rows=rows, prompt_tokens=prompt_tokens) + pace.pass_s(guesses)
            return pace.step_s(rows=rows + guesses, prompt_tokens=prompt_tokens)

        ends = self._info.end_tokens
        guessed = model.propose(asks, rows=len(decodes), step_s=step_s, ends=ends)
        return [
            fed._replace(feed=replace(fed.feed, draft=guessed.get(fed.generation.entry.key, ())))
            if fed.is_decode
            else fed
            for fed in batch
        ]

    def _is_split(self, batch: Sequence[Fed]) -> bool:
        """Whether guesses take a pass of their own: where each sequence has its own KV buffer, a
        device computes feeds of different lengths one length after the other.
        """
        return self._info.kv_cells is None and sum(fed.is_decode for fed in batch) > 1

    def _drafter(self, generation: Generation) -> Drafter:
        if generation.drafter is None:
            ends = self._info.end_tokens | generation.order.stop_tokens
            generation.drafter = Drafter(generation.order.prompt, ends=ends)
            generation.drafter.observe(generation.output)
        return generation.drafter

    @property
    def _can_draft(self) -> bool:
        return self._limits.is_speculative and self._info.abilities.can_verify

    def _one_adapter(self, ordered: list[Generation]) -> list[Generation]:
        """The generations of one adapter; the adapters take turns."""
        adapters = list(dict.fromkeys(g.order.adapter for g in ordered))
        if len(adapters) <= 1:
            return ordered
        names = sorted(adapters, key=lambda name: name or "")
        later = [n for n in names if (n or "") > (self._last_adapter or "")]
        self._last_adapter = later[0] if later else names[0]
        return [g for g in ordered if g.order.adapter == self._last_adapter]


def _even_length(length: int) -> int:
    """A length that drafts of one step are likely to have in common, not over `length`."""
    return next(even for even in _EVEN_LENGTHS if even <= length)
