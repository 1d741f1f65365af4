"""Gather facts about a run for the model card of its exported network."""

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from segnet_jax.config.fields import Config
from segnet_jax.constants import RGB
from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.exporting.model_card import CardFacts
from segnet_jax.runs.run_folder import RESULT_FILE, num_training_images
from segnet_jax.system import untrusted_files
from segnet_jax.training.network_source import is_exported
from segnet_jax.weights.hub import is_repository


def card_facts(folder: str, config: Config, subject: ExportedNetwork) -> CardFacts:
    """Return the facts for the model card of a network exported from a run folder or exported folder."""
    about = subject.about
    result = _result_of(folder)
    return CardFacts(
        network=describe_network(config),
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(subject.trained["params"])),
        images="RGB images" if subject.pixels == RGB else f"images of {subject.pixels}",
        multi_label=config.multi_label,
        image_size=tuple(config.image_size),
        dataset="unknown data" if is_exported(folder) else _dataset_of(config, result),
        num_images=num_training_images(folder),
        protocol=config.protocol,
        init="another exported network" if is_exported(folder) else _name_of(config.init),
        classes=tuple(about["classes"]),
        colors=tuple(map(tuple, about["colors"])),
        step=about["step"],
        checkpoint=about["checkpoint"],
        result=result,
        made_by=about["made_by"],
        date=datetime.date.today().isoformat(),
    )


def describe_network(config: Config) -> str:
    """Describe a network, such as "SegNet with a VGG-16 encoder, 5 stages, 0.25 of the channels"."""
    encoder = f"with a VGG-{config.encoder[-2:]} encoder"
    names = {"segnet": f"SegNet {encoder}", "segnet-basic": "SegNet-Basic", "unet": f"U-Net {encoder}"}
    name = names.get(config.network, config.network)
    width = "" if config.width == 1 else f", {config.width:g} of the channels"
    return f"{name}, {config.num_stages} stages{width}"


def _result_of(folder: str) -> Mapping[str, Any]:
    """Return a run's result, or {} if it is missing or unreadable."""
    try:
        result = untrusted_files.read_json(folder, RESULT_FILE)
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _dataset_of(config: Config, result: Mapping[str, Any]) -> str:
    """Return the result's name of the training data if it is CamVid or rendered scenes, otherwise the folder's name."""
    dataset = result.get("dataset")
    is_known = isinstance(dataset, str) and dataset.startswith(("camvid", "synthetic"))
    return dataset if is_known else _name_of(config.data)


def _name_of(path: str) -> str:
    """Return the last component of a path, since a card must not name local folders; keep Hub repositories whole."""
    return path if is_repository(path) else pathlib.PurePath(path).name
