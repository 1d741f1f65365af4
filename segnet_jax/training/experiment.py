"""Which experiment a checkpoint is of: its settings against the run's config, and what was overridden on the way."""

import logging
import pathlib
from typing import Any

from segnet_jax.config.fields import Config, differences, hash_of, on_resume
from segnet_jax.config.files import CONFIG_FILE
from segnet_jax.config.files import override as override_fields
from segnet_jax.system import confined
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)

CHANGES_FILE = "overrides.json"


def check_experiment(folder: pathlib.Path, meta: dict[str, Any], config: Config, override: bool | None = None) -> None:
    """Compare what a checkpoint says of its experiment with the run's config, field by field.

    What was overridden on the way, after the checkpoint was saved, is known from the run's notes and no difference.

    Args:
      folder: the run's.
      meta: the JSON of the checkpoint.
      config: the run's, as its file says or, on resume, as it is to go on.
      override: whether the user wants to go on with a changed recipe; None where nothing is trained, and a recipe of
        training that differs is only told.

    Raises:
      UserError: it is another experiment, with old -> new for each field.
    """
    told, step = meta.get("experiment"), meta["step"]
    if told is None:  # a version that kept the hash alone: a field that was added since has changed that
        if meta.get("config") not in (None, config.hash()):
            logger.warning(f"the checkpoint of step {step} does not tell its settings: they are not compared")
        return
    saved = override_fields(Config(), told, source=f"a checkpoint of {folder}")
    if meta.get("config") not in (None, hash_of(told)):
        raise UserError(f"the checkpoint of step {step} in {folder} contradicts itself on its experiment")
    expected = config
    for note in reversed(overrides(folder)):
        if note["step"] >= step:
            before = {name: each["old"] for name, each in note["changes"].items()}
            expected = override_fields(expected, before, source=str(folder / CHANGES_FILE))
    changed = differences(saved, expected)
    if not changed:
        return
    refused = [name for name in changed if on_resume(name) == "refused"]
    fields = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
    what = f"the checkpoint of step {step} in {folder} is of another experiment than the run's config: {fields}"
    if refused or override is False:
        more = "" if refused else ", or add --override to go on with the change"
        raise UserError(f"{what}; put back the {CONFIG_FILE} or the checkpoints that belong together{more}")
    logger.warning(what)


def overrides(folder: pathlib.Path) -> list[dict[str, Any]]:
    """What was changed in a run on the way: {"step", "changes": {name: {"old", "new"}}}, in order."""
    path = folder / CHANGES_FILE
    try:
        noted = confined.read_json(folder, CHANGES_FILE) if confined.is_file(folder, CHANGES_FILE) else []
        if isinstance(noted, list) and all(map(_is_note, noted)):
            return noted
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is damaged: restore the file, or delete it and forget what was changed")


def _is_note(note: dict[str, Any]) -> bool:
    changes = note["changes"]
    return (
        type(note["step"]) is int
        and isinstance(changes, dict)
        and all(isinstance(each, dict) and {"old", "new"} <= each.keys() for each in changes.values())
    )
