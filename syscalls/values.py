"""The base of everything that crosses the syscall boundary.

Owns the pydantic settings that all values share: frozen, no unknown fields, finite numbers.
Refuses to know what any value means.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# Recursive JSON aliases cost pyright and pydantic more than they give: JSON at the edge is checked
# by `wire.py` when it is serialised, which names the offending value.
JsonValue = Any
JsonObject = dict[str, Any]


class Value(BaseModel):
    """An immutable value with a JSON form; unknown fields are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        ser_json_bytes="base64",
        ser_json_inf_nan="constants",  # the default writes null for them, in silence
        val_json_bytes="base64",
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )
