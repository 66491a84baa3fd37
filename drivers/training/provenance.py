"""What code trained a version: enough to say whether another run could come out the same."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

# Whose arithmetic a run is made of.
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers")


@cache
def code_version() -> dict[str, str]:
    """The versions of llmos and of the libraries, and the sha256 of the training code itself."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {
        "llmos": version("llmos"),
        **{name: version(name) for name in _LIBRARIES},
        "training_sha256": digest.hexdigest(),
    }
