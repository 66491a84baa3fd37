"""Personal data in rows: found, replaced, counted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.drivers.rows.redaction import (
    PatternRedactor,
    Span,
    load_redactor,
    redact,
    redact_rows,
)
from llmos.syscalls.content import Message, ToolRequest, assistant, user
from llmos.syscalls.errors import ConfigError

MAIL = "ann@example.org"


class Names:
    """A redactor of one name."""

    def find(self, text: str, /) -> Sequence[Span]:
        at = text.find("Ann")
        return [] if at < 0 else [Span("name", at, at + 3)]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail a.b+c@ex-ample.co.uk now", "mail [email] now"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [iban]."),
        ("GB82WEST12345698765432", "[iban]"),
        ("pay 4111 1111 1111 1111!", "pay [card]!"),
        ("pay 4111-1111-1111-1111", "pay [card]"),
        ("from 10.0.0.1:80 to fe80::1.", "from [ip]:80 to [ip]."),
        ("2001:db8::8a2e:370:7334", "[ip]"),
        ("call +49 (0)30 1234567", "call [phone]"),
        ("call (555) 123-4567, or 0151/12345678", "call [phone], or [phone]"),
        ("+1-202-555-0173", "[phone]"),
    ],
)
def test_what_is_told_by_its_form_is_replaced(text: str, redacted: str) -> None:
    assert redact(text, PatternRedactor()).text == redacted


@pytest.mark.parametrize(
    "text",
    [
        "DE88 3704 0044 0532 0130 00 has wrong check digits",
        "2024-01-05 12:30:45, 05/01/2024",
        "1,234,567.89 or 1234567890 or 3.14159265358979",
        "see version 1.2.3.4.5 or 300.1.1.1",
        "a @ b, user@localhost, ::",
        "It costs 12 or 15 or 200.",
    ],
)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert redact(text, PatternRedactor()).text == text


@given(st.integers(0, 10**15 - 1))
def test_card_numbers_are_those_that_their_last_digit_checks(number: int) -> None:
    digits = f"{number:015d}"
    found = [
        text
        for last in "0123456789"
        if "[card]" in redact(text := f"x {digits}{last}", PatternRedactor()).text
    ]
    assert len(found) == (0 if set(digits) == {"0"} else 1)


@given(st.text(), st.lists(st.sampled_from([MAIL, "10.1.2.3", "+49 30 1234567"]), max_size=3))
def test_redacting_again_finds_nothing(text: str, pieces: list[str]) -> None:
    once = redact(" ; ".join([text, *pieces]), PatternRedactor())
    again = redact(once.text, PatternRedactor())
    assert again.text == once.text and not again.counts
    assert once.counts.total() >= len(pieces)


def test_rows_of_every_kind_are_redacted_and_keep_their_labels() -> None:
    request = ToolRequest(id="1", name="mail", arguments={"to": [MAIL], "n": 1})
    rows: list[Row] = [
        ChatRow((user(MAIL), Message(role="assistant", tool_requests=(request,))), "1"),
        TextRow(MAIL, "2"),
        LabelledRow(MAIL, MAIL, "3"),
        TaggedRow(("Ask", MAIL, "or", "+49", "30", "1234567"), ("O", "B-x", *"OOOO"), "4"),
        PreferRow((user("a"),), MAIL, "b", "5"),
        PairRow("a", "b", MAIL, "6"),
    ]
    redacted, counts = redact_rows(rows)
    chat, text, labelled, tagged, prefer, pair = redacted
    assert isinstance(chat, ChatRow) and chat.messages[0].text == "[email]"
    assert chat.messages[1].tool_requests[0].arguments == {"to": ["[email]"], "n": 1}
    assert text[0] == "[email]" and labelled[:2] == ("[email]", MAIL)
    assert isinstance(tagged, TaggedRow)
    assert tagged.tokens == ("Ask", "[email]", "or", "[phone]", "[phone]", "[phone]")
    assert tagged.tags == ("O", "B-x", *"OOOO")
    assert prefer[1] == "[email]" and pair[2] == "[email]"
    assert counts == {"email": 7, "phone": 1}


def test_a_redactor_of_ones_own_takes_the_place_of_the_patterns() -> None:
    row = ChatRow((user("Ann, " + MAIL), assistant("ok")), "1")
    rows, counts = redact_rows([row], Names())
    assert rows[0].messages[0].text == "[name], " + MAIL
    assert counts == {"name": 1}


def test_a_redactor_is_found_by_name_or_the_name_is_refused() -> None:
    assert isinstance(load_redactor(None), PatternRedactor)
    name = "llmos.drivers.rows.redaction:PatternRedactor"
    assert isinstance(load_redactor(name), PatternRedactor)
    for wrong in ("no.such.module:X", "json:NoSuchThing", "json"):
        with pytest.raises(ConfigError, match="module:name"):
            load_redactor(wrong)


@given(st.text("0123456789 .-+()@:aDE", max_size=200))
def test_spans_are_in_order_and_do_not_overlap(text: str) -> None:
    spans = PatternRedactor().find(text)
    assert all(one.end <= other.start for one, other in pairwise(spans))
    assert all(span.start < span.end for span in spans)
