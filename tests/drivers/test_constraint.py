"""Constraints over a small vocabulary: bytes, a few longer tokens, two end tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.drivers.constraint import ConstraintCompiler, Matcher
from llmos.drivers.contract import DeviceError
from llmos.syscalls.options import (
    ChoiceConstraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
)

PIECES = [*(bytes([byte]) for byte in range(256)), b'{"', b'":', b"true", b"<end>", b"<stop>"]
END = {259, 260}
CLOSING = [259, ord('"'), ord("}"), ord("]")]


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(PIECES, special=END, end=END, tokenize=lambda text: [*text.encode()])


def allowed(matcher: Matcher) -> set[bytes]:
    return {PIECES[token] for token in matcher.mask().nonzero()[0]}


def accept(matcher: Matcher, text: str) -> None:
    for byte in text.encode():
        matcher.accept(byte)
    matcher.check()


def test_a_mask_covers_the_vocabulary_and_allows_longer_tokens(
    compiler: ConstraintCompiler,
) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    matcher = compiler.compile(JsonSchemaConstraint(json_schema=schema))
    mask = matcher.mask()
    assert mask.shape == (len(PIECES),)
    # What is forced comes in the tokenizer's own tokens, here single bytes.
    assert allowed(matcher) == {b"{"}
    accept(matcher, '{"ok":')
    assert allowed(matcher) == {b"t", b"true", b"f"}


def test_json_has_no_optional_whitespace(compiler: ConstraintCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    matcher = compiler.compile(JsonSchemaConstraint(json_schema=schema))
    accept(matcher, '{"a":null')
    assert b" " not in allowed(matcher)


def test_a_schema_cannot_ask_for_its_own_whitespace(compiler: ConstraintCompiler) -> None:
    schema = {"type": "object", "x-guidance": {"whitespace_flexible": True}}
    matcher = compiler.compile(JsonSchemaConstraint(json_schema=schema))
    accept(matcher, "{")
    assert b" " not in allowed(matcher)


def test_what_is_complete_allows_only_end_tokens(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(ChoiceConstraint(choices=("yes", "no")))
    assert not matcher.can_end
    accept(matcher, "yes")
    assert matcher.is_complete
    assert matcher.can_end
    assert allowed(matcher) == {b"<end>", b"<stop>"}


def test_what_may_go_on_allows_end_tokens_too(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(RegexConstraint(pattern="[ab]+"))
    assert allowed(matcher) == {b"a", b"b"}
    accept(matcher, "ab")
    assert matcher.can_end
    assert not matcher.is_complete
    assert allowed(matcher) == {b"a", b"b", b"<end>", b"<stop>"}


def test_leaving_the_constraint_shows_at_the_next_check(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(RegexConstraint(pattern="abc"))
    matcher.accept(ord("x"))
    assert not matcher.is_complete
    for look in (matcher.check, matcher.mask):
        with pytest.raises(DeviceError, match="cannot go on"):
            look()


def test_forced_tokens_are_taken_up_to_where_there_is_a_choice(
    compiler: ConstraintCompiler,
) -> None:
    matcher = compiler.compile(RegexConstraint(pattern="abc[xy]de"))
    assert matcher.take_forced() == [*b"abc"]
    assert matcher.take_forced() == []
    assert allowed(matcher) == {b"x", b"y"}
    accept(matcher, "x")
    assert matcher.take_forced() == [*b"de"]
    assert matcher.is_complete
    assert matcher.take_forced() == []


def test_a_matcher_that_left_its_constraint_forces_nothing(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(RegexConstraint(pattern="abc"))
    matcher.accept(ord("x"))
    assert matcher.take_forced() == []
    with pytest.raises(DeviceError, match="cannot go on"):
        matcher.check()


def test_two_matchers_of_one_constraint_are_independent(compiler: ConstraintCompiler) -> None:
    constraint = RegexConstraint(pattern="ab|cd")
    one, other = compiler.compile(constraint), compiler.compile(constraint)
    accept(one, "a")
    assert allowed(one) == {b"b"}
    assert allowed(other) == {b"a", b"c"}


@pytest.mark.parametrize(
    "choices", [("a", "ab"), ('quo"te', "back\\slash"), ("line\nbreak", "é☕"), ("", "x")]
)
def test_choices_are_taken_literally(
    compiler: ConstraintCompiler, choices: tuple[str, ...]
) -> None:
    for choice in choices:
        matcher = compiler.compile(ChoiceConstraint(choices=choices))
        accept(matcher, choice)
        assert matcher.can_end


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (RegexConstraint(pattern="(a"), "unclosed group"),
        (RegexConstraint(pattern="a(?=b)"), "look-around"),
        (GrammarConstraint(lark="start: missing"), "missing"),
        (GrammarConstraint(lark="%%"), "grammar"),
        (JsonSchemaConstraint(json_schema={"type": "strong"}), "strong"),
        (
            JsonSchemaConstraint(json_schema={"$ref": "https://example.invalid/x"}),
            "example.invalid",
        ),
        (
            JsonSchemaConstraint(json_schema={"type": "string", "minLength": 3, "maxLength": 1}),
            "Unsatisfiable",
        ),
    ],
)
def test_what_does_not_compile_is_refused_with_the_reason(
    compiler: ConstraintCompiler, constraint: Any, reason: str
) -> None:
    with pytest.raises(DeviceError, match=reason) as caught:
        compiler.compile(constraint)
    assert not caught.value.is_fatal
    assert constraint.type in str(caught.value)


PLAIN = st.sampled_from(
    [
        {"type": "integer", "minimum": -20, "maximum": 300},
        {"type": "boolean"},
        {"type": "string", "maxLength": 4},
        {"enum": ["x", 3, None]},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("abé", min_size=1, max_size=3), PLAIN, max_size=3), st.data())
def test_any_walk_through_the_masks_ends_in_valid_json(
    compiler: ConstraintCompiler, properties: dict[str, Any], data: st.DataObject
) -> None:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    matcher = compiler.compile(JsonSchemaConstraint(json_schema=schema))
    written = bytearray()
    for _ in range(200):
        options = [int(token) for token in matcher.mask().nonzero()[0]]
        assert options
        likely = [token for token in CLOSING if token in options] or options
        token = data.draw(st.sampled_from(likely if len(written) > 60 else options))
        if token in END:
            break
        written += PIECES[token]
        matcher.accept(token)
    value = json.loads(written.decode())
    assert set(value) == set(properties)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("abé", min_size=1, max_size=3), PLAIN, max_size=3), st.data())
def test_what_is_forced_is_what_the_masks_would_have_left(
    compiler: ConstraintCompiler, properties: dict[str, Any], data: st.DataObject
) -> None:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    ahead, behind = (compiler.compile(JsonSchemaConstraint(json_schema=schema)) for _ in "ab")
    for _ in range(60):
        for token in ahead.take_forced():
            assert behind.mask().nonzero()[0].tolist() == [token]
            behind.accept(token)
        options = ahead.mask().nonzero()[0].tolist()
        assert options == behind.mask().nonzero()[0].tolist()
        token = data.draw(st.sampled_from(options))
        if token in END:
            break
        for matcher in (ahead, behind):
            matcher.accept(token)
