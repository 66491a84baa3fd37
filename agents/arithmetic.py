"""Arithmetic on untrusted expressions, without `eval`.

Only numbers and operators are read; sizes are bounded before anything is computed, so that no short
expression costs much time or memory. `^` is a power, as models and people write it.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from llmos.syscalls.errors import SyscallError

Number = int | float

MAX_EXPRESSION_CHARS = 200
MAX_BITS = 4096  # of any whole number on the way; a float knows its own bound
_SIGNIFICANT_DIGITS = 12

_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def evaluate(expression: str) -> str:
    """The value of an arithmetic expression, as text.

    Raises: SyscallError("tool_failed") saying what is wrong with the expression.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise _failed(f"the expression is longer than {MAX_EXPRESSION_CHARS} characters")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        return _shown(_value(tree.body))
    except ZeroDivisionError as problem:
        raise _failed("it divides by zero") from problem
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        # The parser raises the last two for expressions that nest too deep.
        raise _failed(f"{expression!r} is not arithmetic; write numbers and + - * / ^ ( )") from (
            problem
        )
    except OverflowError as problem:
        raise _failed("the result is too large") from problem


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("a truth value")
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _bounded(_BINARY[type(sign)](_value(left), _value(right)))
        case _:
            raise ValueError(type(node).__name__)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        # Before it is computed: 9^9^9 would take all memory.
        if base.bit_length() * exponent > MAX_BITS:
            raise OverflowError
        return base**exponent
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("a complex number")
    return _bounded(result)


def _bounded(number: Number) -> Number:
    is_too_large = number.bit_length() > MAX_BITS if isinstance(number, int) else math.isinf(number)
    if is_too_large:
        raise OverflowError
    return number


def _shown(number: Number) -> str:
    if isinstance(number, int):
        return str(number)
    if math.isnan(number):
        raise ValueError("not a number")
    return f"{number:.{_SIGNIFICANT_DIGITS}g}"


def _failed(reason: str) -> SyscallError:
    return SyscallError("tool_failed", f"calculator: {reason}", tool="calculator", error=reason)
