"""Convert a SegNet trained with Caffe into a run: `python -m segnet_jax.convert --help`."""

import contextlib
import dataclasses
import pathlib
import sys
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
import tyro

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_protocol
from segnet_jax.config.flag_specs import File, RunFolder
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.label_files.class_table_files import TABLES, read_class_table
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.distributed.data_parallel import choose_devices, replicate
from segnet_jax.nn.preprocessing import PREPROCESSINGS
from segnet_jax.reporting.environment import environment
from segnet_jax.runs import find_run
from segnet_jax.system.command import run_command
from segnet_jax.system.command_name import as_called
from segnet_jax.system.console import echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_json, atomic_write_text, expanded, sum_of_file
from segnet_jax.training import build_model
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.class_weights import CAFFE_CAMVID
from segnet_jax.training.state import create_state, variable_shapes
from segnet_jax.weights.formats.caffe_segnet import BATCH_NORM_EPSILON, CaffeSegNet
from segnet_jax.weights.load import read_caffe_segnet
from segnet_jax.weights.published import PUBLISHED_SEGNETS, obtain_segnet

DROPOUT = 0.5
"""Dropout rate of Bayesian SegNet."""

DESCRIPTION = f"""Convert a SegNet or SegNet-Basic trained with Caffe SegNet into a run folder that evaluate, predict,
export and segnet_jax.load accept like any other.

FILE is a .caffemodel written by compute_bn_statistics.py, as the authors publish them, or the name of a published
model to download: {", ".join(PUBLISHED_SEGNETS)}.

Bayesian SegNets predict without dropout unless --samples is given; --dropout 0 removes dropout from the run.

Example:
  python -m segnet_jax.convert bayesian_segnet_camvid --run runs/caffe"""


@dataclass(frozen=True)
class ConvertOptions:
    """Flags of `convert`."""

    file: Annotated[File, tyro.conf.Positional]  # a .caffemodel file, or the name of a published model
    run: RunFolder = ""  # run folder to create; default: runs/NAME, where NAME is the file's name without suffix
    dropout: float = -1.0  # dropout rate for sampling; -1: 0.5 if the model has dropout layers
    classes: File = ""  # class table with names and colors (classes.toml, codes.txt, ...); default: CamVid's 11


def main() -> int:
    """Run the command."""
    return convert(parse_flags(ConvertOptions, sys.argv[1:], prog="segnet_jax.convert", description=DESCRIPTION))


def convert(options: ConvertOptions) -> int:
    """Read the model file and write the run; return the exit code.

    Raises:
      UserError: If the file does not contain a supported network, the number of classes does not match, or the run
        folder exists.
    """
    path = obtain_segnet(options.file)
    trained = read_caffe_segnet(path)
    classes = _classes_of(trained, options.classes, path)
    config = _config_of(trained, classes, path, options)
    find_run.check_free(config)
    devices = choose_devices("1")
    model = build_model.build_model(config, len(classes), "float32")
    variables = {"params": trained.params, "batch_stats": trained.batch_stats}
    _check_shapes(variables, variable_shapes(model))
    preprocessing = PREPROCESSINGS[config.preprocessing]
    meta = {
        "step": 0,
        "seconds": 0.0,
        "config": config.hash(),
        "experiment": config.experiment(),
        "classes": list(classes.names),
        "colors": classes.colors,
        "preprocessing": vars(preprocessing),
        "precision": "float32",
        "class_weights": list(CAFFE_CAMVID) if classes == CAMVID else [1.0] * len(classes),
        "class_weights_by": config.class_weights,
        "global_batch_size": config.batch_size_per_device,
        "data": {"train": "unknown"},  # matches no dataset, so training cannot resume this run
        "last": None,
        "best": None,
        "converted_from": {"file": path.name, "sha256": sum_of_file(path)},
    }
    with contextlib.ExitStack() as stack:
        folder = find_run.claim_folder(config, stack)
        atomic_write_text(folder / files.CONFIG_FILE, config.to_toml())
        atomic_write_json(folder / "environment.json", environment(devices.kinds))
        optimizer, _ = build_model.build_optimizer(config, model, steps_per_epoch=1)
        state = replicate(create_state(variables, optimizer, "float32"), devices)
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", devices))
        for which in ("best", "newest"):
            checkpoints.save(which, 0, state, meta)
        checkpoints.wait()
        atomic_write_json(folder / "outcome.json", {"exit_code": 0, "why": "converted", "converted_from": path.name})
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    dropout = f"dropout {config.dropout:g}" if config.dropout else "no dropout"
    echo(f"{path.name}: {trained.network}, {num_parameters:,} parameters, {dropout}, {len(classes)} classes")
    echo(f"wrote {folder}; to use it: {as_called('python -m segnet_jax.predict')} {folder} IMAGE")
    return 0


def _classes_of(trained: CaffeSegNet, table: str, path: pathlib.Path) -> ClassTable:
    """Read the classes from a class table file; without one, return CamVid's eleven."""
    if not table:
        if trained.num_classes == len(CAMVID):
            return CAMVID
        raise UserError(
            f"{path.name} has {trained.num_classes} classes, whose names are unknown; give them in order with "
            f"--classes FILE ({', '.join(TABLES)}; see data/README.md)"
        )
    file = expanded(table)
    if file.name not in TABLES:
        raise UserError(f"--classes must be a file named one of {', '.join(TABLES)}, got {table}")
    classes = read_class_table(file).classes
    if len(classes) != trained.num_classes:
        raise UserError(f"--classes {table} has {len(classes)} classes, but {path.name} has {trained.num_classes}")
    return classes


def _config_of(trained: CaffeSegNet, classes: ClassTable, path: pathlib.Path, options: ConvertOptions) -> Config:
    """Return the run's config: the published protocol, adapted to the file."""
    dropout = options.dropout if options.dropout != -1 else DROPOUT if trained.has_dropout else 0.0
    recipe = (
        "segnet-basic" if trained.network == "segnet-basic" else "bayesian-segnet" if dropout else "camvid-tutorial"
    )
    config = read_protocol(recipe, Config())
    others = {} if classes == CAMVID else {"protocol": "", "class_weights": "none"}  # not trained on CamVid
    return dataclasses.replace(
        config,
        dropout=dropout,
        batch_norm_epsilon=BATCH_NORM_EPSILON,
        init=path.name,
        preprocessing="raw",
        precision="float32",
        batch_norm="running",  # the authors recomputed the statistics and merged them into scale and shift
        run=options.run or str(pathlib.Path("runs") / path.stem),
        **others,
    )


def _check_shapes(variables: dict, expected: dict) -> None:
    """Assert that the converted variables have the network's shapes."""
    ours, theirs = (jax.tree.map(np.shape, tree) for tree in (expected, variables))
    assert ours == theirs, f"weights/formats/caffe_segnet.py and nn do not agree: {ours} {theirs}"


if __name__ == "__main__":
    run_command(main)
