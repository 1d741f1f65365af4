"""Train SegNet: `python -m segnet_jax.train --help`."""

import sys

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.runs.default_recipe import default_config
from segnet_jax.runs.trainer import Trainer
from segnet_jax.system import logs
from segnet_jax.system.callable_module import make_callable
from segnet_jax.system.command import run_command
from segnet_jax.training.custom_augmentation import CustomAugmentation
from segnet_jax.training.custom_network import import_given
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects

DESCRIPTION = """Train SegNet and write a run folder with checkpoints, metrics, figures and a report.
After an interruption, a kill or a full disk, the same command resumes the run.

Examples:
  python -m segnet_jax.train --protocol demo
  python -m segnet_jax.train --data photos
  python -m segnet_jax.train --protocol camvid-matlab-2018 --data camvid --devices 8"""


def main() -> int:
    """Run the command."""
    logs.follow_pipe()
    args = sys.argv[1:]
    config = parse_config(args, prog="segnet_jax.train", description=DESCRIPTION, defaults=default_config)
    import_given(args)
    return train(config, CustomObjects(augment=CustomAugmentation.named(config.augment, args)))


def train(config: Config, own: CustomObjects = NO_OBJECTS) -> int:
    """Train or resume a run, cross-validate, or run a learning-rate range test, by the config; return exit code 0.

    Raises:
      UserError: If the config or the data is invalid; raised before anything is compiled.
      ExitError: If training ends early; saved checkpoints are intact.
    """
    if config.find_lr:
        from segnet_jax.runs.find_lr import find_lr  # imports the report page, which training loads only at its end

        find_lr(config, own)
    elif config.folds and not config.fold:
        from segnet_jax.runs.cross_validation import cross_validate

        cross_validate(config, lambda each: Trainer(each, own).run())
    else:
        Trainer(config, own).run()
    return 0


if __name__ == "__main__":
    run_command(main)
else:
    make_callable(__name__)  # segnet_jax.train(...) of the Python API
