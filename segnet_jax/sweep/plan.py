"""Read the runs of a sweep from its file, and check all of them as `train` would, before any is trained."""

import itertools
import os
import pathlib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from segnet_jax.config.fields import Config
from segnet_jax.config.files import fields_of_a_start
from segnet_jax.config.flag_specs import flag_words
from segnet_jax.config.flags import parse_config
from segnet_jax.runs.default_recipe import default_config
from segnet_jax.system import bounded_toml
from segnet_jax.system.bucket_address import is_address
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import expanded

TABLES = ("base", "grid", "runs")
MOST_RUNS = 1000
_OF_A_START = {*fields_of_a_start(Config.__dataclass_fields__)} - {"profile"}


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
      name: name of the run folder.
      settings: values of the config fields that the sweep varies.
      words: flags of `train`, without `--run`.
      config: config that the flags produce.
      folder: run folder.
    """

    name: str
    settings: Mapping[str, Any]
    words: tuple[str, ...]
    config: Config
    folder: pathlib.Path


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, in order.

    Attributes:
      folder: folder of the run folders and the table.
      runs: at least one run.
    """

    folder: pathlib.Path
    runs: tuple[PlannedRun, ...]


def read_plan(file: str, out: str = "", given: Mapping[str, str] = types.MappingProxyType({})) -> Plan:
    """Read the TOML file of a sweep.

    Args:
      file: path of the file.
      out: folder of the runs; by default runs/NAME for a file NAME.toml.
      given: settings of every run from the command line, "" for none; addresses are read only if given here.

    Raises:
      UserError: If the file cannot be read, a table or a setting is unknown, or the settings of a run are invalid.
    """
    content = _read(file)
    if unknown := [name for name in content if name not in TABLES]:
        raise UserError(f"unknown table {unknown[0]!r} in {file}{nearest_hint(unknown[0], TABLES)}")
    base, grid, named = (content.get(name, {}) for name in TABLES)
    for name, table in zip(TABLES, (base, grid, named), strict=True):
        if not isinstance(table, dict):
            raise UserError(f"{name} in {file} must be a table, [{name}], got {table!r}")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{name} in [grid] of {file} must be a list of one or more values, got {values!r}")
    for name, values in named.items():
        if not isinstance(values, dict) or not re.fullmatch(r"[\w+-][\w.+-]{0,99}", name):
            raise UserError(f"[runs] of {file} must contain tables [runs.NAME], got {name!r}")
    given = {name: value for name, value in given.items() if value}
    if both := [name for name in given if name in grid or any(name in own for own in named.values())]:
        raise UserError(f"--{both[0]} is for every run, but {file} varies {both[0]}: use only one of them")
    folder = pathlib.Path(out or os.path.join("runs", pathlib.Path(file).stem))
    runs = tuple(_planned(file, folder, name, base, varied, given) for name, varied in _combinations(file, grid, named))
    if len({run.name for run in runs}) < len(runs):
        raise UserError(f"{file} contains a run twice: remove repeated values from [grid]")
    return Plan(folder, runs)


def _read(file: str) -> dict[str, Any]:
    path = expanded(file)
    try:
        if not path.is_file():
            raise UserError(f"{file} is not a file: pass the TOML file of a sweep, see --help")
        with path.open("rb") as opened:
            return bounded_toml.loads(opened.read(bounded_toml.MOST_BYTES + 1).decode())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is not a valid TOML file: {error}") from None


def _combinations(
    file: str, grid: Mapping[str, list], named: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the varied settings of every run."""
    count = len(named or {"": {}})
    for values in grid.values():
        count *= len(values)
    if not (grid or named) or count > MOST_RUNS:
        raise UserError(
            f"{file} describes {count if count > 1 else 'no'} runs in [grid] and [runs]: use 1 to {MOST_RUNS}"
        )
    for name, own in (named or {"": {}}).items():
        if both := grid.keys() & own.keys():
            raise UserError(f"{sorted(both)[0]} is both in [grid] and in [runs.{name}] of {file}: use only one of them")
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            parts = [name] if name else []
            parts += [f"{key}={_short(value)}" for key, value in point.items()]
            yield os.fsencode(",".join(parts))[:200].decode(errors="ignore"), {**own, **point}


def _short(value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+*-]+", "_", text)


def _planned(
    file: str, folder: pathlib.Path, name: str, base: Mapping, varied: Mapping[str, Any], given: Mapping[str, str]
) -> PlannedRun:
    """Return a run, after checking its settings with the parser of `train`."""
    settings = {**base, **varied, **given}
    _check_sources(file, settings, given)
    known = Config.__dataclass_fields__
    for key in settings:
        if key not in known and key != "config":
            raise UserError(f"unknown setting {key!r} in {file}{nearest_hint(key, known)}")
        if key == "own" or key in _OF_A_START:
            raise UserError(f"{key} in {file} applies to a single start of train, so a sweep cannot set it: remove it")
        _check_texts(file, key, settings[key])
    words = flag_words(Config, settings)
    try:
        config = parse_config(words, prog="segnet_jax.train", description="", defaults=default_config)
    except UserError as error:
        raise UserError(f"run {name} of {file}: {error}") from None
    _check_config(file, name, config)
    _check_sources(file, {"data": config.data, "init": config.init}, given)  # of a config file that it names
    return PlannedRun(name, varied, tuple(words), config, folder / name)


def _check_texts(file: str, key: str, value: Any) -> None:
    """Check that no text in a value would be parsed as another flag of `train`."""
    if isinstance(value, list | dict):
        for each in (*value, *(value.values() if isinstance(value, dict) else ())):
            _check_texts(file, key, each)
    elif isinstance(value, str) and value.startswith("-"):
        raise UserError(f"{key} in {file} must not begin with -, got {value!r}")


def _check_sources(file: str, settings: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Check that the data and the initial weights are at no address but those that the command line gives."""
    for key in ("data", "init"):
        source = settings.get(key)
        if isinstance(source, str) and is_address(source) and source != given.get(key):
            raise UserError(
                f"{key} in {file} is the address {source}, but addresses are read only if the command line names "
                f"them: remove it from the file, and add --{key} {source}"
            )


def _check_config(file: str, name: str, config: Config) -> None:
    """Check restrictions on a run of a sweep beyond those of `train`, also for settings from a `config` file.

    Raises:
      UserError: If the run imports custom code, has settings of a single start, or consists of several runs.
    """
    for key in ("network", "augment"):
        value = getattr(config, key)
        if ":" in value or (key == "augment" and value):
            raise UserError(
                f"run {name} of {file}: {key} {value!r} is custom code, which is imported only if it is named on a "
                "command line: a sweep cannot set it"
            )
    if given := sorted(key for key in _OF_A_START if getattr(config, key) != getattr(Config, key)):
        raise UserError(
            f"run {name} of {file}: {given[0]} applies to a single start of train, so a sweep cannot set it: remove it"
        )
    if config.folds and not config.fold:
        raise UserError(
            f"run {name} of {file}: folds without fold trains several runs: add fold = "
            f"{list(range(1, config.folds + 1))} to [grid]"
        )
