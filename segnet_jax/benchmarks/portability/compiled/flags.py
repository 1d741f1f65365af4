"""The flags of `portability compile` in addition to those of the config."""

from segnet_jax.benchmarks.portability.compiled.chips import chip_names
from segnet_jax.benchmarks.portability.steps import STEPS
from segnet_jax.config.flag_specs import Flag

COMPILE_FLAGS = (
    Flag("target", "chip to compile for", "{" + ",".join(chip_names()) + "}", section="compile"),
    Flag(
        "json",
        "JSON file to write; programs of the same settings are added to an existing one",
        "FILE",
        section="compile",
    ),
    Flag("programs", "steps to compile", "{" + ",".join(STEPS) + "} ...", arity=None, section="compile"),
    Flag("hlo", "folder for the text of the optimized programs", "FOLDER", section="compile"),
    Flag("run", "run to read config, classes, preprocessing and class weights from", "RUN", section="compile"),
)
