"""Custom augmentations: batched JAX functions, applied inside the training step after all other augmentations."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segnet_jax.config.fields import Config
from segnet_jax.constants import Pixels
from segnet_jax.system.custom_code import import_function
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CustomAugmentation:
    """A custom augmentation.

    Attributes:
      name: module and function, such as "mine:jitter".
      function: function of images, uint8 or uint16 [B,H,W,C], labels, uint8 [B,H,W], and `jax.random` keys, [B],
        that returns images and labels of the same shapes and dtypes. Batches do not depend on the
        number of devices if the function treats each image separately.
    """

    name: str
    function: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

    @classmethod
    def named(cls, name: str, args: Sequence[str]) -> "CustomAugmentation | None":
        """Import the augmentation that a config names; return None if the command line does not set --augment.

        Raises:
          UserError: If the function cannot be imported.
        """
        is_given = any(arg.partition("=")[0] == "--augment" for arg in args)
        return cls(name, import_function(name, "--augment")) if name and is_given else None

    def __call__(self, image: Any, label: Any, key: Any) -> dict[str, jax.Array]:
        """Augment a batch.

        Args:
          image: uint8 or uint16 [...,H,W,C].
          label: uint8 [...,H,W].
          key: int32 [...,2], random bits from the sampler.

        Returns:
          The augmented "image" and "label".

        Raises:
          UserError: If the function raises an exception or returns other shapes or dtypes.
        """
        image, label = lax.optimization_barrier(
            (jnp.asarray(image), jnp.asarray(label))
        )  # compiles to the same program for both inputs
        batch = tuple(each.reshape(-1, *each.shape[label.ndim - 2 :]) for each in (image, label))
        bits = lax.bitcast_convert_type(jnp.asarray(key).reshape(-1, 2), jnp.uint32)
        expected = _shapes(batch)
        try:
            found = self.function(*batch, jax.random.wrap_key_data(bits, impl="threefry2x32"))
        except Exception as error:
            logger.debug(f"--augment {self.name}", exc_info=True)
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(f"--augment {self.name} failed on {expected}: {type(error).__name__}: {reason}") from None
        if not isinstance(found, tuple | list) or _shapes(found) != expected:
            got = _shapes(found if isinstance(found, tuple | list) else [found])
            raise UserError(f"--augment {self.name} must return image and label as {expected}, got {got}")
        return {"image": found[0].reshape(image.shape), "label": found[1].reshape(label.shape)}

    def check(self, batch_size: int, image_size: tuple[int, int], pixels: Pixels) -> None:
        """Trace the function on a batch of this size and pixel format, without computing anything.

        Raises:
          UserError: If the function raises an exception or returns other shapes or dtypes.
        """
        image = jax.ShapeDtypeStruct((batch_size, *image_size, pixels.channels), pixels.dtype)
        label = jax.ShapeDtypeStruct((batch_size, *image_size), jnp.uint8)
        jax.eval_shape(self, image, label, jax.ShapeDtypeStruct((batch_size, 2), jnp.int32))


def check_custom_augmentation(config: Config, own: CustomAugmentation | None) -> None:
    """Check the custom augmentation before anything is compiled.

    Raises:
      UserError: If the config names an augmentation that the command does not, or the augmentation fails or changes the
        shapes or dtypes of a batch.
    """
    if config.augment and own is None:
        raise UserError(
            f"the config names the custom augmentation {config.augment}, which is only imported if this command names "
            f'it: add --augment {config.augment}, or in Python augment="{config.augment}"'
        )
    if own is not None:
        pixels = Pixels(config.channels, int(config.image_bits))
        own.check(config.batch_size_per_device * config.grad_accum_steps, config.train_size, pixels)


def _shapes(arrays: Sequence[Any]) -> str:
    """Format dtypes and shapes, such as "uint8 [4,360,480,3] and uint8 [4,360,480]"."""
    texts = [
        f"{each.dtype} [{','.join(map(str, each.shape))}]" if hasattr(each, "shape") else type(each).__name__
        for each in arrays
    ]
    return " and ".join(texts) or "nothing"
