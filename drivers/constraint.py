"""Constrained decoding: which tokens may come next under a JSON Schema, regex, choice or grammar.

Owns the bridge to llguidance, so that one constraint means the same on every local driver. It knows
a model's vocabulary as bytes and refuses to know the model. JSON comes out compact, without
optional whitespace: a small model left free to write spaces may write nothing else.

What it does not protect against: a constraint bounds the form, not the length. A string without
`maxLength` or a number without bounds ends when the model ends it, or at `max_tokens`.

Source: llguidance (Earley parser over derivatives of regular expressions; masks in microseconds).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, assert_never

import numpy as np

from llmos.drivers.contract import DeviceError, RequestError
from llmos.drivers.sampling import Mask
from llmos.syscalls.options import (
    ChoiceConstraint,
    Constraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
)

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_REASON_CHARS = 400


class ConstraintCompiler:
    """Compiles constraints for one model's vocabulary.

    `pieces` are the bytes of every token by id, special tokens by their own text; `special` the ids
    of tokens that no text may produce; `end` those that end generation; `tokenize` the model's own
    tokenizer without special tokens. The first `compile` builds a trie of the vocabulary, once
    (0.2 s for 49,000 tokens). One thread at a time.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        special: Collection[int],
        end: Collection[int],
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self._pieces = pieces
        self._special = special
        self._end = end
        self._tokenize = tokenize

    def compile(self, constraint: Constraint) -> Matcher:
        """A matcher at the constraint's beginning. Raises: RequestError with the reason."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = _grammar(constraint)
        except (TypeError, ValueError) as problem:
            raise RequestError(
                f"the {constraint.type} constraint is no JSON: {problem}", field="constraint"
            ) from problem
        # Verbose errors would carry the parser's state, which is of no use to an agent.
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(
                f"the {constraint.type} constraint does not compile: {_reason(matcher)}",
                field="constraint",
            )
        return Matcher(matcher, len(self._pieces))

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        end = sorted(self._end)
        wrapped = TokenizerWrapper(
            _Vocabulary(self._pieces, sorted(self._special), end[0], self._tokenize)
        )
        return LLTokenizer(wrapped, n_vocab=len(self._pieces), eos_token=end)


class Matcher:
    """Where one sequence stands in its constraint."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether the output is whole and nothing but an end token can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def can_end(self) -> bool:
        """Whether the output is whole as it stands, though it may go on."""
        return self._matcher.is_accepting()

    def mask(self) -> Mask:
        """True for each token that may come next `(vocabulary,)`; end tokens when `can_end`.

        Raises: DeviceError when the constraint is too complex to go on.
        """
        bits = self._matcher.compute_bitmask()
        # In its error state llguidance allows the end tokens, as if the output were whole.
        self.check()
        words = np.frombuffer(bits, np.uint8)
        return np.unpackbits(words, count=self._vocabulary, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Take the token that was chosen; one that the constraint forbids shows in `check`."""
        self._matcher.consume_token(token)

    def take_forced(self) -> list[int]:
        """Take the tokens that must come next whatever the model says; often none.

        They are those that one mask after the other would leave as the only choice.
        """
        if self._matcher.is_error():
            return []
        tokens = self._matcher.compute_ff_tokens()
        self._matcher.consume_tokens(tokens)
        return tokens

    def check(self) -> None:
        """Raises: DeviceError when the output left the constraint, or it grew too complex."""
        if self._matcher.is_error():
            raise DeviceError(f"the constraint cannot go on: {_reason(self._matcher)}")


class _Vocabulary:
    """A vocabulary in the form that llguidance's `TokenizerWrapper` reads."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_token_ids: Sequence[int],
        eos_token_id: int,
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self._tokenize = tokenize

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenize(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own form."""
    from llguidance import LLMatcher

    match constraint:
        case JsonSchemaConstraint():
            return LLMatcher.grammar_from_json_schema(
                json.dumps(constraint.json_schema, allow_nan=False),
                overrides={"whitespace_flexible": False},
            )
        case RegexConstraint():
            return LLMatcher.grammar_from_regex(constraint.pattern)
        case ChoiceConstraint():
            # Lark's string literals are written as JSON's.
            choices = " | ".join(json.dumps(choice) for choice in constraint.choices)
            return LLMatcher.grammar_from_lark(f"start: {choices}")
        case GrammarConstraint():
            return LLMatcher.grammar_from_lark(constraint.lark)
        case _:
            assert_never(constraint)


def _reason(matcher: LLMatcher) -> str:
    return matcher.get_error().replace("<non-verbose/>", "").strip()[:_MOST_REASON_CHARS]
