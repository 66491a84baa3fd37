"""Forms that a model's text is held to, as regular expressions (Rust syntax, also JSON Schema's).

A small model left alone may never end; a sentence with a longest length and one full stop does.
"""

from __future__ import annotations

# Inside a sentence a dot stands in a number or a name (3.5, notes.txt), and no other follows at
# once: a small model that may write "2.2" would go on "2.2.2.2".
_DOTTED = r"([0-9]\.[0-9]{1,5}|[a-z_]\.[a-z]{1,4})"


def sentence(*, least: int, most: int, start: str = "[A-Z]", without: str = "") -> str:
    """One sentence of about `least` to `most` characters after its first.

    `start` is a pattern for its beginning; `without` lists characters that it must not have, as
    they are written inside brackets.
    """
    return rf"{clause(least=least, most=most, start=start, without=without)}{_DOTTED}?\."


def clause(*, least: int, most: int, start: str = "[A-Z]", without: str = "") -> str:
    """A sentence without its full stop."""
    plain = rf"[^.\n{without}]"
    return rf"{start}({plain}|{_DOTTED}[^.\na-z0-9{without}]){{{least},{most}}}"


def json_sentence(*, least: int, most: int) -> str:
    """One sentence as the pattern of a JSON string."""
    return f"^{sentence(least=least, most=most, without=_NOT_IN_JSON)}$"


def words(*, most: int) -> str:
    """One sentence of four to `most` words."""
    # Unbounded, or with a comma inside, a "word" without spaces could go on for ever.
    rest = rf"{_DOTTED}?[,;:]?"
    word = rf"([^\s.,;:]{{1,20}}{rest}|{_DOTTED}[,;:]?)"
    return rf"[A-Z][^\s.,;:]{{0,20}}{rest}( {word}){{3,{most - 1}}}\."


_NOT_IN_JSON = r'"\\'
