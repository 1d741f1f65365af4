"""Compare the settings stored in a checkpoint with the run's config, and read a run's overrides."""

import logging
import pathlib
from typing import Any

from segnet_jax.config.differences import differences, refused
from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE
from segnet_jax.config.files import override as override_fields
from segnet_jax.config.toml_form import hash_of
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)

CHANGES_FILE = "overrides.json"


def check_experiment(folder: pathlib.Path, meta: dict[str, Any], config: Config, override: bool | None = None) -> None:
    """Compare the settings stored in a checkpoint with the run's config, field by field.

    Fields overridden after the checkpoint was saved (`overrides.json`) do not count as different. On resume, `config`
    is the new one. `override` is whether to allow changed settings; None, for commands that do not train, only logs
    them.

    Raises:
      UserError: If the settings differ and this is not allowed; the message shows old -> new for each field.
    """
    experiment, step = meta.get("experiment"), meta["step"]
    if experiment is None:  # older versions stored only the hash, which later fields have changed
        if meta.get("config") not in (None, config.hash()):
            logger.warning(f"the checkpoint of step {step} does not store its settings: they were not compared")
        return
    saved = override_fields(Config(), experiment, source=f"a checkpoint of {folder}")
    if meta.get("config") not in (None, hash_of(experiment)):
        raise UserError(
            f"the checkpoint of step {step} in {folder} is inconsistent: its settings do not match its hash"
        )
    expected = config
    for entry in reversed(overrides(folder)):
        if entry["step"] >= step:
            before = {name: each["old"] for name, each in entry["changes"].items()}
            expected = override_fields(expected, before, source=str(folder / CHANGES_FILE))
    changed = differences(saved, expected)
    if not changed:
        return
    fields = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
    message = f"the checkpoint of step {step} in {folder} has settings that differ from the run's config: {fields}"
    if refused(changed) or override is False:
        option = "" if refused(changed) else ", or add --override to continue with the change"
        raise UserError(f"{message}; restore the {CONFIG_FILE} or the checkpoints that belong to it{option}")
    logger.warning(message)


def overrides(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return a run's overrides in order: {"step", "changes": {name: {"old", "new"}}}.

    Raises:
      UserError: If the file is damaged.
    """
    path = folder / CHANGES_FILE
    try:
        entries = (
            untrusted_files.read_json(folder, CHANGES_FILE) if untrusted_files.is_file(folder, CHANGES_FILE) else []
        )
        if isinstance(entries, list) and all(map(_is_valid, entries)):
            return entries
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is damaged: restore the file, or delete it, which loses the list of overridden settings")


def _is_valid(entry: dict[str, Any]) -> bool:
    changes = entry["changes"]
    return (
        type(entry["step"]) is int
        and isinstance(changes, dict)
        and all(isinstance(each, dict) and {"old", "new"} <= each.keys() for each in changes.values())
    )
