"""The log file: what a developer wants to read and a person at a terminal does not."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE_NAME = "llmos.log"
_FILE_BYTES = 1 << 20


def log_to_file(home: Path) -> Path | None:
    """Send the records of all floors to a file in `home`, and nowhere else.

    Returns the file, or None where it cannot be written: then only errors go to standard error.
    """
    logger = logging.getLogger("llmos")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    try:
        home.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(
            home / FILE_NAME, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8", delay=False
        )
    except OSError:
        logger.setLevel(logging.ERROR)
        return None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    return home / FILE_NAME
