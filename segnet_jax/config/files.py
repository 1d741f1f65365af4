"""Read configs from files: a user's TOML file, a protocol of the package, the config of a run."""

import dataclasses
import difflib
import os
import pathlib
import reprlib
import tomllib
import typing
from collections.abc import Iterable
from importlib import resources
from typing import Any, Literal

from segnet_jax.config.fields import FORMAT_VERSION, OF_THIS_START, Config, on_resume
from segnet_jax.system import bounded_toml, untrusted_files
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError, listed, shown
from segnet_jax.system.flag_names import option_of

BATCH_OF_A_DEVICE = ("camvid-matlab-2018",)
"""Protocols whose batch size is per device; for all others it is the total batch of a step."""


def read_config(path: pathlib.Path, base: Config) -> Config:
    """Override `base` with the protocol that a TOML file names, if any, then with the file's own values.

    Raises:
      UserError: If the file cannot be read, is not TOML, has an unknown key or protocol, or a value of a wrong type or
        out of range, or sets a field marked OF_THIS_START, such as an address to connect to.
    """
    file = pathlib.Path(os.path.realpath(path))  # named by the user, so it may be a link
    values = _read(file.parent, file.name, path)
    if of_a_start := fields_of_a_start(values):
        flags = ", ".join(map(option_of, of_a_start))
        raise UserError(
            f"{shown(str(path))} sets {', '.join(of_a_start)}, which may only be given on the command line: remove it "
            f"from the file, and add {flags}"
        )
    if isinstance(name := values.get("protocol"), str) and name:
        base = read_protocol(name, base)
    return override(base, values, source=str(path))


def read_whole_config(folder: pathlib.Path, name: str) -> Config:
    """Read a config written by `Config.to_toml`; as it has every field, its protocol is not applied.

    Args:
      folder: run folder; it may be untrusted, so links in it are not followed.
      name: name of the config file.

    Raises:
      UserError: If `read_config` raises it, or a field marked OF_THIS_START is set, such as an address to connect to.
    """
    path = folder / name
    values = _read(folder, name, path)
    if of_a_start := fields_of_a_start(values):
        raise UserError(
            f"{shown(str(path))} sets {', '.join(of_a_start)}, which may only be given on the command line: remove it "
            "from the file, and check what else was changed there",
            kind="not-of-a-run",
            file=shown(str(path)),
        )
    return override(Config(), values, source=str(path))


def fields_of_a_start(keys: Iterable[str]) -> list[str]:
    """Return the keys that belong to a single start, such as an address to connect to."""
    known = Config.__dataclass_fields__
    return [key for key in keys if key in known and on_resume(key) == OF_THIS_START["on_resume"]]


def _read(folder: pathlib.Path, name: str, path: pathlib.Path) -> dict[str, Any]:
    """Read the values of a TOML file without following a link; `path` names it in error messages."""
    try:
        values = bounded_toml.loads(untrusted_files.read_bytes(folder, name, most=bounded_toml.MOST_BYTES).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:  # also raised for huge integers and deep nesting
        raise UserError(f"{path} is not valid TOML: {error}") from None
    version = values.pop("format_version", FORMAT_VERSION)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{shown(str(path))} has format_version {_shown(version)}, but this segnet_jax reads versions up to "
            f"{FORMAT_VERSION}: update segnet_jax"
        )
    return values


def read_protocol(name: str, base: Config) -> Config:
    """Override `base` with a named protocol.

    Raises:
      UserError: If the name is unknown; the known ones are listed.
    """
    path = resources.files("segnet_jax") / "config" / "protocols" / f"{name}.toml"
    if name not in protocol_names():
        raise UserError(f"unknown protocol {name!r}; known: {', '.join(protocol_names())}")
    return override(
        base, tomllib.loads(path.read_text(encoding="utf-8")) | {"protocol": name}, source=f"protocol {name}"
    )


def protocol_names() -> list[str]:
    """Return the names of the protocols shipped with the package."""
    folder = resources.files("segnet_jax") / "config" / "protocols"
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def protocol_summaries() -> list[tuple[str, str]]:
    """Return name and summary of each protocol; the summary is the first line of its file."""
    folder = resources.files("segnet_jax") / "config" / "protocols"
    texts = {name: (folder / f"{name}.toml").read_text(encoding="utf-8") for name in protocol_names()}
    return [(name, text.partition("\n")[0].lstrip("# ")) for name, text in texts.items()]


def protocol_batch(protocol: Config, num_devices: int) -> int:
    """Return the total batch size per step that a protocol prescribes for `num_devices` devices."""
    batch = protocol.batch_size_per_device * protocol.grad_accum_steps
    return batch * num_devices if protocol.protocol in BATCH_OF_A_DEVICE else batch


def override(base: Config, values: dict[str, Any], source: str) -> Config:
    """Replace fields of `base` by values read from `source`; see `read_config` for the errors raised."""
    types = typing.get_type_hints(Config)
    if "epochs" in values and "steps" not in values:  # explicit epochs take precedence over the base's steps
        values = values | {"steps": 0}
    if isinstance(weights := values.get("class_weights"), list):  # written in TOML as a list of numbers
        values = values | {"class_weights": " ".join(map(str, weights))}
    for key, value in values.items():
        if key not in types:
            key = key[:100]
            raise UserError(f"unknown key {key!r} in {source}{nearest_hint(key, types)}")
        values = values | {key: _checked(key, value, types[key], source)}
    return dataclasses.replace(base, **values)


def _checked(key: str, value: Any, expected: Any, source: str) -> Any:
    """Return a TOML value converted to the field's type."""
    if typing.get_origin(expected) is Literal:
        choices = typing.get_args(expected)
        if value in choices:
            return value
        hint = nearest_hint(value[:100], choices) if isinstance(value, str) else ""
        raise UserError(f"{key} in {source} must be one of {', '.join(choices)}, got {_shown(value)}{hint}")
    if typing.get_origin(expected) is tuple:
        kinds = typing.get_args(expected)
        if kinds[-1] is ... and isinstance(value, list):  # of any length
            kinds = kinds[:1] * len(value)
        if isinstance(value, list) and len(value) == len(kinds):
            return tuple(_checked(key, item, kind, source) for item, kind in zip(value, kinds, strict=True))
    elif expected is float and (type(value) is float or type(value) is int and abs(value) < 2**1000):
        return float(value)
    elif type(value) is expected:  # not isinstance: a bool is not an int here
        return value
    raise UserError(f"{key} in {source} must be {getattr(expected, '__name__', expected)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """Return the shortened repr of a value from a file."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    return short.repr(value)


CONFIG_FILE = "config.toml"


def is_run(folder: pathlib.Path) -> bool:
    """Return whether a folder has an entry named like a run's config; `read_run` rejects all but regular files."""
    return os.path.lexists(folder / CONFIG_FILE)  # pathlib's version raises if the name is too long


def read_run(folder: str | pathlib.Path) -> Config:
    """Read the config of a run, after checking the files of its folder.

    Raises:
      UserError: If there is no such run, or its folder contains a link, a pipe or a device.
    """
    folder = pathlib.Path(folder)
    if not is_run(folder):
        raise UserError(missing_run_message(folder))
    untrusted_files.check_tree(folder)
    return read_whole_config(folder, CONFIG_FILE)


def read_run_in(folder: str | pathlib.Path, name: str) -> Config:
    """Read the config of a run inside a folder of runs, such as a fold, which must not be a link.

    Raises:
      UserError: If it is one, or `read_run` raises it.
    """
    untrusted_files.check_folder(folder, name)
    return read_run(pathlib.Path(folder, name))


def missing_run_message(folder: pathlib.Path) -> str:
    """Return the message for a path that is not a run folder, with similar runs."""
    if os.path.isdir(folder):
        found = _runs_in(folder)
        hint = f"; it is a folder of runs: {listed([str(folder / name) for name in found])}" if found else ""
        return f"no run in {folder}: it contains no {CONFIG_FILE}{hint}"
    parents = dict.fromkeys((folder.parent, pathlib.Path("runs")))
    names = {str(parent / name): name for parent in parents for name in _runs_in(parent)}
    same = [path for path, name in names.items() if name == folder.name]
    near = difflib.get_close_matches(str(folder), names, n=1) or [
        path for path, name in names.items() if name in difflib.get_close_matches(folder.name, names.values(), n=1)
    ]
    hint = f". Did you mean {(same or near)[0]}?" if same or near else ""
    return f"no run {folder}: there is no such folder{hint}"


def _runs_in(folder: pathlib.Path) -> list[str]:
    """Return the names of the runs in a folder, at most a thousand."""
    try:
        names = sorted(os.listdir(folder))[:1000]
    except (OSError, ValueError):
        return []
    return [name for name in names if is_run(folder / name)]
