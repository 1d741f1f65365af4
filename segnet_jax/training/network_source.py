"""Sources of a trained network: a run folder, an exported folder, a bucket, or a Hugging Face Hub repository.

An exported folder contains `network.safetensors`, written by `export`, and usually a model card. It is untrusted:
only that file is read, no link is followed, and only the settings listed here are accepted.
"""

import pathlib
from collections.abc import Sequence

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.label_mapping import StoredLabels, labels_from_json
from segnet_jax.system import untrusted_files
from segnet_jax.system.bucket_address import is_address
from segnet_jax.system.buckets import local_copy
from segnet_jax.system.errors import UserError
from segnet_jax.training.custom_network import import_network
from segnet_jax.weights.hub import NETWORK_FILE, fetch_repository, is_repository
from segnet_jax.weights.segnet_safetensors import Description, ExportedSegNet

NETWORK_FIELDS = (  # config fields needed to rebuild the network; none contains a path
    *("protocol", "image_size", "network", "encoder", "depth", "width", "pooling", "upsampling", "encoder_addition"),
    *("stage_convolutions", "stage_channels", "kernel_size", "channels"),
    *("decoder", "dropout", "conv_bias", "final_batch_norm", "batch_norm_epsilon", "output"),
)
READING_FIELDS = (  # config fields for reading images and labels; none contains a path or leads out of a folder
    *("fit", "exif", "image_range", "image_bits", "resize_labels", "label_suffix", "map", "labels_start_at"),
    *("labels_as", "threshold", "unknown_color", "mostly_void", "mask_order", "unmasked", "multi_label"),
)


def local_folder(source: str | pathlib.Path) -> str:
    """Return the local folder of a network, after downloading it if the source is a Hub repository or a bucket.

    Raises:
      UserError: If the repository or the bucket cannot be downloaded.
    """
    if isinstance(source, str) and is_repository(source):
        return str(fetch_repository(source))
    return str(local_copy("a network", source)) if isinstance(source, str) and is_address(source) else str(source)


def is_exported(folder: str | pathlib.Path) -> bool:
    """Return whether a folder contains an exported network and no run; False if it cannot be read."""
    folder = pathlib.Path(folder)
    try:
        return not files.is_run(folder) and untrusted_files.status(folder, NETWORK_FILE) is not None
    except OSError:  # reading it as a run reports the cause
        return False


def read_network_config(folder: str | pathlib.Path, custom_network: str = "", others: Sequence[str] = ()) -> Config:
    """Return the config of a run, or of an exported network (its network, image size and read options).

    Args:
      folder: the run folder or the exported folder.
      custom_network: the network that this command names, imported if it is custom (see `import_network`).
      others: other sources that the command uses; `custom_network` may also be the network of one of these.

    Raises:
      UserError: If the folder contains neither or is damaged, or `custom_network` is another network or cannot be
        imported.
    """
    exported = is_exported(folder)
    config = config_from(describe_exported(folder), str(folder)) if exported else files.read_run(folder)
    if custom_network:
        known = {config.network, *(read_network_config(local_folder(source)).network for source in others)}
        if custom_network not in known:
            raise UserError(
                f"--network {custom_network} is not the network of {folder}, which is {' or '.join(sorted(known))}: "
                "omit --network, or name that one"
            )
        import_network(custom_network)
    return config


def config_from(description: Description, source: str) -> Config:
    """Return the config that an exported network describes; the description is untrusted.

    Raises:
      UserError: If a setting is unknown, not allowed in an exported network, or invalid.
    """
    settings = description.settings | description.reading
    allowed = (*NETWORK_FIELDS, *READING_FIELDS)
    if other := [name for name in settings if name in Config.__dataclass_fields__ and name not in allowed]:
        raise UserError(f"{source} sets {', '.join(other)}, which an exported network must not set; export it again")
    return files.override(Config(), settings, source=source)


def describe_exported(folder: str | pathlib.Path) -> Description:
    """Read the description of an exported network.

    Raises:
      UserError: If the file is damaged, too large, or a link.
    """
    from segnet_jax.weights.load import describe_exported_segnet

    return describe_exported_segnet(_network_file(folder))


def read_exported(folder: str | pathlib.Path) -> ExportedSegNet:
    """Read an exported network completely. Raises the same errors as `describe_exported`."""
    from segnet_jax.weights.load import read_exported_segnet

    return read_exported_segnet(_network_file(folder))


def exported_labels(folder: str | pathlib.Path) -> StoredLabels | None:
    """Return the classes and the label rule of an exported network, or None if it has no rule.

    Raises:
      UserError: If the rule is invalid.
    """
    labels = describe_exported(folder).labels
    try:
        return None if labels is None else labels_from_json(labels)
    except ValueError as error:
        raise UserError(f"the label rule in {_network_file(folder)} is damaged: {error}") from None


def _network_file(folder: str | pathlib.Path) -> pathlib.Path:
    untrusted_files.is_file(folder, NETWORK_FILE)  # rejects a link, a pipe or a device
    return pathlib.Path(folder) / NETWORK_FILE
