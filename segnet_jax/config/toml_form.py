"""Serialize config fields as TOML, and hash them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def hash_of(experiment: Mapping[str, Any]) -> str:
    """Return the sha256 of an experiment's fields, in their order, as hex."""
    return hashlib.sha256(toml_of(experiment).encode("utf-8", "surrogatepass")).hexdigest()


def toml_of(fields: Mapping[str, Any]) -> str:
    """Return fields as TOML, one line each."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())
