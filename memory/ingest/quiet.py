"""Parsers' remarks about the files of others, which nobody here can act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock

# Python keeps one set of filters for all threads: two that change it must not overlap.
_changing = Lock()


@contextmanager
def quiet(*loggers: str) -> Generator[None]:
    """Let no warning out of the block, and let these loggers say nothing from now on."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with _changing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
