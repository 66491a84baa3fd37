"""The calculator: what it reads, and what it refuses before it costs anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.agents.arithmetic import MAX_EXPRESSION_CHARS, evaluate
from llmos.syscalls.errors import SyscallError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("17 * 23", "391"),
        ("2^10", "1024"),
        ("2 ** 3 ** 2", "512"),
        ("(40 + 2) / 7", "6"),
        ("7 // 2 + 7 % 2", "4"),
        ("-3 - -5", "2"),
        ("1 / 3", "0.333333333333"),
        ("1.5e3", "1500"),
        (" 2^-1 ", "0.5"),
        ("2^0.5", "1.41421356237"),
    ],
)
def test_it_works_out_arithmetic(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "two",
        "1 +",
        "__import__('os')",
        "abs(1)",
        "[1, 2]",
        "True + 1",
        "1 if 2 else 3",
        "'a' * 9",
        "1 < 2",
        "~1",
        "1 << 9",
        "(-8) ^ 0.5",
        "1j",
        "\x00",
        "(" * 150 + "1" + ")" * 40,
    ],
)
def test_what_is_not_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(SyscallError) as caught:
        evaluate(expression)
    assert caught.value.code == "tool_failed"


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1 / 0", "divides by zero"),
        ("0^-1", "divides by zero"),
        ("9^9^9", "too large"),
        ("9^9999", "too large"),
        ("2.0^99999", "too large"),
        ("1e308 * 10", "too large"),
        ("(10^100)^9 * (10^100)^9", "too large"),
        ("1" * (MAX_EXPRESSION_CHARS + 1), "longer"),
    ],
)
def test_what_is_too_large_is_refused_with_the_reason(expression: str, reason: str) -> None:
    with pytest.raises(SyscallError, match=reason):
        evaluate(expression)


@given(st.text(alphabet="0123456789.()+-*/%^ ", max_size=MAX_EXPRESSION_CHARS))
def test_any_expression_gives_a_number_or_a_tool_error(expression: str) -> None:
    try:
        value = evaluate(expression)
    except SyscallError as problem:
        assert problem.code == "tool_failed"
    else:
        float(value)
