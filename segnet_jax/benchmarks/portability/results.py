"""The JSON files of `portability measure` and `portability compile`."""

import pathlib
from typing import Any

from segnet_jax.system.errors import UserError
from segnet_jax.system.files import read_own_json


def read_written(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file that `portability measure` or `portability compile` wrote.

    Raises:
      UserError: If the file cannot be read, or was written by something else.
    """
    try:
        data = read_own_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(data, dict):
        for mark, content in (("portability", "precisions"), ("compiled", "programs")):
            if data.get(mark) == 1 and isinstance(data.get(content), dict):
                return data
    raise UserError(f"{path} was not written by portability measure or compile")
