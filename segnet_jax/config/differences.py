"""Compare the configs of two experiments."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from segnet_jax.config.fields import Config, on_resume
from segnet_jax.config.files import protocol_names, read_protocol


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the experiment's fields that differ, name -> (old, new), without those that are free to change."""
    return {
        item.name: (getattr(old, item.name), getattr(new, item.name))
        for item in dataclasses.fields(Config)
        if on_resume(item.name) in ("override", "refused") and getattr(old, item.name) != getattr(new, item.name)
    }


def refused(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return the names of changed fields that prevent resuming a run, even with --override."""
    plateau = "plateau" in changed.get("schedule", ())  # its state is part of the optimizer's
    return [name for name in changed if on_resume(name) == "refused" or (plateau and name == "schedule")]


def recipe_differences(config: Config) -> tuple[str, Config, dict[str, tuple[Any, Any]]]:
    """Compare a config with its protocol.

    Returns:
      The protocol's name, or "custom"; the protocol's config, or the defaults; and the experiment's fields that differ,
      name -> (protocol's, config's).
    """
    name, base = "custom", Config()
    if config.protocol in protocol_names():
        name, base = config.protocol, read_protocol(config.protocol, Config())
    changes = differences(base, config)
    return name, base, {field: both for field, both in changes.items() if field != "protocol"}
