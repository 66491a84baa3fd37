"""Personal data in rows: found and replaced before a model can learn it.

`Redactor` is the hook: whoever knows names, case numbers or another language's forms gives one of
their own. The default knows what can be told by its form: e-mail addresses, IBANs and card numbers
(by their check digits), IP addresses and phone numbers.

It does not find: names, street addresses, birthdays, numbers written as words or spread over
several messages, and what a redactor of your own does not look for. It may take a version number of
four parts for an IP address.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar, assert_never

from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.syscalls.content import Message, TextPart
from llmos.syscalls.errors import ConfigError
from llmos.syscalls.values import JsonValue

R = TypeVar("R", bound=Row)


class Span(NamedTuple):
    """A piece of personal data: what it is, and text[start:end]."""

    kind: str
    start: int
    end: int


class Redactor(Protocol):
    """Finds what must not be learnt."""

    def find(self, text: str, /) -> Sequence[Span]:
        """The spans to replace, in order and not overlapping."""
        ...


class Redacted(NamedTuple):
    """A text with `[kind]` in place of each span, and how many of each kind there were."""

    text: str
    counts: Counter[str]


class PatternRedactor:
    """Finds e-mail addresses, IBANs, card numbers, IP addresses and phone numbers."""

    def find(self, text: str, /) -> Sequence[Span]:
        """Spans in order. Where two kinds could be meant, the one with a check digit is."""
        found: list[Span] = []
        for kind, pattern, is_meant in _KINDS:
            for match in pattern.finditer(text):
                span = Span(kind, match.start(), match.end())
                place = bisect_left(found, span.start, key=_start)
                if not _is_taken(found, place, span) and is_meant(match[0]):
                    found.insert(place, span)
        return found


def redact(text: str, redactor: Redactor) -> Redacted:
    """Replace what a redactor finds."""
    spans = redactor.find(text)
    if not spans:
        return Redacted(text, Counter())
    pieces: list[str] = []
    end = 0
    for span in spans:
        pieces += text[end : span.start], f"[{span.kind}]"
        end = span.end
    return Redacted("".join([*pieces, text[end:]]), Counter(span.kind for span in spans))


def redact_rows(
    rows: Sequence[R], redactor: Redactor | None = None
) -> tuple[list[R], Counter[str]]:
    """Rows with their text replaced, labels and tags as they were, and the counts by kind."""
    work = _Work(redactor or PatternRedactor())
    return [work.row(row) for row in rows], work.counts


def redact_messages(
    messages: Iterable[Message], redactor: Redactor | None = None
) -> tuple[tuple[Message, ...], Counter[str]]:
    """Messages with their text and the arguments of their tool requests replaced."""
    work = _Work(redactor or PatternRedactor())
    return work.messages(messages), work.counts


class _Work:
    """One pass over rows, counting."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        found = redact(text, self._redactor)
        self.counts += found.counts
        return found.text

    def row(self, row: R) -> R:
        plain: Row = row
        match plain:
            case ChatRow():
                done: Row = plain._replace(messages=self.messages(plain.messages))
            case TextRow() | LabelledRow():
                done = plain._replace(text=self.text(plain.text))
            case TaggedRow():
                done = plain._replace(tokens=self._tokens(plain.tokens))
            case PreferRow():
                done = plain._replace(
                    messages=self.messages(plain.messages),
                    chosen=self.text(plain.chosen),
                    rejected=self.text(plain.rejected),
                )
            case PairRow():
                done = plain._replace(
                    text=self.text(plain.text),
                    positive=self.text(plain.positive),
                    negative=None if plain.negative is None else self.text(plain.negative),
                )
            case _:
                assert_never(plain)
        return done  # pyright: ignore[reportReturnType]

    def messages(self, messages: Iterable[Message]) -> tuple[Message, ...]:
        return tuple(self._message(message) for message in messages)

    def _message(self, message: Message) -> Message:
        parts = tuple(
            TextPart(text=self.text(part.text)) if isinstance(part, TextPart) else part
            for part in message.parts
        )
        requests = tuple(
            request.model_copy(update={"arguments": self._json(request.arguments)})
            for request in message.tool_requests
        )
        return message.model_copy(update={"parts": parts, "tool_requests": requests})

    def _json(self, value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self._json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._json(item) for item in value]
        return value

    def _tokens(self, tokens: tuple[str, ...]) -> tuple[str, ...]:
        """Each token that is part of a span becomes its kind: their number stays that of the tags.

        Tokens are joined by blanks to be looked at, so that a phone number of several is found.
        """
        spans = self._redactor.find(" ".join(tokens))
        self.counts.update(span.kind for span in spans)
        redacted: list[str] = []
        start = 0
        for token in tokens:
            end = start + len(token)
            kind = next((s.kind for s in spans if s.start < end and start < s.end), None)
            redacted.append(token if kind is None else f"[{kind}]")
            start = end + 1
        return tuple(redacted)


def load_redactor(name: str | None) -> Redactor:
    """A redactor by "module:name" of a class or function that makes one; None is the default.

    Raises: ConfigError when there is none.
    """
    if name is None:
        return PatternRedactor()
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(
            "redactor", f"{name!r} is no redactor: {problem}; write module:name of what makes one"
        ) from problem


# --- what is told by its form ---------------------------------------------------------------------

_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]\d|\d)")
_IP = re.compile(
    r"(?<![\w.:])(?:"
    r"\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)"  # a port may follow
    r"|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]))"
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ ./-]?)?(?:\(\d{1,5}\)[ ./-]?)?"
    r"\d{2,5}(?:[ ./-]?\d{2,5}){1,4}(?![\w-]|\.\d)"
)
_DATE = re.compile(
    r"(?:19|20)\d\d[ ./-]\d{1,2}[ ./-]\d{1,2}\b|\d{1,2}[ ./-]\d{1,2}[ ./-](?:19|20)\d\d\b"
)
_PHONE_DIGITS = range(8, 16)  # ITU-T E.164 allows 15


def _is_email(_: str) -> bool:
    return True


def _is_iban(text: str) -> bool:
    """Whether the check digits hold (ISO 13616: the number, rearranged, is 1 modulo 97)."""
    plain = text.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Whether the last digit checks the others by Luhn's sum (ISO/IEC 7812)."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text != "::"


def _is_phone(text: str) -> bool:
    """Digits enough, with a sign that they are a phone number and no other: +, 0 or separators."""
    digits = sum(char.isdigit() for char in text)
    is_written_as_one = text[0] in "+0(" or not text.isdigit()
    return digits in _PHONE_DIGITS and is_written_as_one and not _DATE.match(text)


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, _is_email),
    ("iban", _IBAN, _is_iban),
    ("card", _CARD, _is_card),
    ("ip", _IP, _is_ip),
    ("phone", _PHONE, _is_phone),
)


def _start(span: Span) -> int:
    return span.start


def _is_taken(spans: Sequence[Span], place: int, span: Span) -> bool:
    """Whether a span overlaps those beside its place."""
    after = place < len(spans) and spans[place].start < span.end
    return after or (place > 0 and spans[place - 1].end > span.start)
