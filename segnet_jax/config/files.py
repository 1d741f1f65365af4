"""Configs in files: a user's TOML file, a protocol of the package, the config of a run folder."""

import dataclasses
import difflib
import os
import pathlib
import reprlib
import tomllib
import typing
from importlib import resources
from typing import Any, Literal

from segnet_jax.config.fields import FORMAT_VERSION, OF_THIS_START, Config, differences, on_resume
from segnet_jax.system import bounded_toml, confined
from segnet_jax.system.errors import UserError, shown

BATCH_OF_A_DEVICE = ("camvid-matlab-2018",)
"""Protocols whose batch is what each device takes, however many there are; of all others it is a step's."""


def read_config(path: pathlib.Path, base: Config) -> Config:
    """Overrides `base` with the protocol that a TOML file names, if it names one, and that with what the file says.

    Raises:
      UserError: for a file that cannot be read or is no TOML, an unknown key (with the nearest known one) or protocol,
        a value of the wrong type or out of range.
    """
    file = pathlib.Path(os.path.realpath(path))  # the user's own word, which may be a link
    values = _read(file.parent, file.name, path)
    if isinstance(name := values.get("protocol"), str) and name:
        base = read_protocol(name, base)
    return override(base, values, source=str(path))


def read_whole_config(folder: pathlib.Path, name: str) -> Config:
    """Read the config of a run, as `Config.to_toml` wrote it: every field, so that the protocol is only a name.

    Args:
      folder: the run's, which may be somebody else's: the config is not read through a link.
      name: of the file in it.

    Raises:
      UserError: as `read_config`; or the config sets what belongs to one start alone, such as an address to connect to.
    """
    path = folder / name
    values = _read(folder, name, path)
    known = Config.__dataclass_fields__
    if of_a_start := [key for key in values if key in known and on_resume(key) == OF_THIS_START["on_resume"]]:
        raise UserError(
            f"{shown(str(path))} sets {', '.join(of_a_start)}, which no run keeps: that is given on the command line "
            "alone; remove it from the file, and see what else was changed in it",
            kind="not-of-a-run",
            file=shown(str(path)),
        )
    return override(Config(), values, source=str(path))


def _read(folder: pathlib.Path, name: str, path: pathlib.Path) -> dict[str, Any]:
    """The values of a TOML file, not read through a link; messages call it `path`."""
    try:
        values = bounded_toml.loads(confined.read_bytes(folder, name, most=bounded_toml.MOST_BYTES).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:  # also for numbers of thousands of digits, and for deep nesting
        raise UserError(f"{path} is not valid TOML: {error}") from None
    version = values.pop("format_version", FORMAT_VERSION)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{shown(str(path))} has format_version {_shown(version)}, and this segnet_jax reads runs up to "
            f"{FORMAT_VERSION}: update segnet_jax"
        )
    return values


def read_protocol(name: str, base: Config) -> Config:
    """Overrides `base` with a named protocol.

    Raises:
      UserError: for an unknown name, listing the known ones.
    """
    path = resources.files("segnet_jax") / "config" / "protocols" / f"{name}.toml"
    if name not in protocol_names():
        raise UserError(f"unknown protocol {name!r}; known: {', '.join(protocol_names())}")
    return override(
        base, tomllib.loads(path.read_text(encoding="utf-8")) | {"protocol": name}, source=f"protocol {name}"
    )


def protocol_names() -> list[str]:
    """Names of the protocols that ship with the package."""
    folder = resources.files("segnet_jax") / "config" / "protocols"
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def recipe_differences(config: Config) -> tuple[str, Config, dict[str, tuple[Any, Any]]]:
    """What a recipe differs from.

    Returns:
      Its protocol's name, "custom" without one; that protocol, else the defaults; and the fields of the experiment that
      differ: name -> (there, here).
    """
    name, base = "custom", Config()
    if config.protocol in protocol_names():
        name, base = config.protocol, read_protocol(config.protocol, Config())
    changes = differences(base, config)
    return name, base, {field: both for field, both in changes.items() if field != "protocol"}


def protocol_batch(protocol: Config, num_devices: int) -> int:
    """Images a step by a protocol, or by the defaults, whatever one device takes at once.

    Args:
      protocol: from `read_protocol`.
      num_devices: that it is trained on.
    """
    batch = protocol.batch_size_per_device * protocol.grad_accum_steps
    return batch * num_devices if protocol.protocol in BATCH_OF_A_DEVICE else batch


def override(base: Config, values: dict[str, Any], source: str) -> Config:
    """Replaces fields of `base` by values read from a file, checked for name and type.

    Raises:
      UserError: as `read_config`.
    """
    types = typing.get_type_hints(Config)
    for key, value in values.items():
        if key not in types:
            key = key[:100]
            near = difflib.get_close_matches(key, types, n=1)
            raise UserError(f"unknown key {key!r} in {source}" + (f"; nearest: {near[0]}" if near else ""))
        values = values | {key: _checked(key, value, types[key], source)}
    return dataclasses.replace(base, **values)


def _checked(key: str, value: Any, expected: Any, source: str) -> Any:
    """A TOML value as the field's type."""
    if typing.get_origin(expected) is Literal:
        choices = typing.get_args(expected)
        if value in choices:
            return value
        raise UserError(f"{key} in {source} must be one of {', '.join(choices)}, got {_shown(value)}")
    if typing.get_origin(expected) is tuple:
        kinds = typing.get_args(expected)
        if kinds[-1] is ... and isinstance(value, list):  # of any length
            kinds = kinds[:1] * len(value)
        if isinstance(value, list) and len(value) == len(kinds):
            return tuple(_checked(key, item, kind, source) for item, kind in zip(value, kinds, strict=True))
    elif expected is float and (type(value) is float or type(value) is int and abs(value) < 2**1000):
        return float(value)
    elif type(value) is expected:  # not isinstance: a bool is no int here
        return value
    raise UserError(f"{key} in {source} must be {getattr(expected, '__name__', expected)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value from a file as Python writes it, cut where it is long or deep."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    return short.repr(value)


CONFIG_FILE = "config.toml"


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder holds a run, or something in the place of a run's config, which `read_run` then refuses."""
    return os.path.lexists(folder / CONFIG_FILE)  # pathlib's raises for a name that is too long


def read_run(folder: str | pathlib.Path) -> Config:
    """The config that a run was made with, after a look at what its folder consists of.

    Raises:
      UserError: there is no such run, or its folder holds a link, a pipe or a device.
    """
    folder = pathlib.Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no run {folder}: there is no such folder")
    if not is_run(folder):
        raise UserError(f"no run in {folder}: it holds no {CONFIG_FILE}")
    confined.check_tree(folder)
    return read_whole_config(folder, CONFIG_FILE)
