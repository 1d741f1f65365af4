"""Average probabilities over views of an image (test-time augmentation) and over networks (ensembles)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from segnet_jax.inference.network import Network
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError

TTA = Literal["none", "flip"]
"""Test-time augmentation by flipping; scales are a separate setting."""

MIN_SCALE, MAX_SCALE, MAX_SCALES = 0.25, 4.0, 16


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of an image whose probabilities are averaged.

    Attributes:
      flip: whether each view is also segmented flipped left/right.
      scales: factors of the image's size, one view each.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, tta: TTA, scales: Sequence[float]) -> "Views":
        """Create from the flags.

        Raises:
          UserError: If the name is unknown, a scale is out of range or given twice, or there are too many or none.
        """
        known = get_args(TTA)
        if tta not in known:
            raise UserError(f"--tta must be one of {', '.join(known)}, got {tta!r}{nearest_hint(str(tta), known)}")
        given = " ".join(f"{scale:g}" for scale in scales) or "none"
        if not 1 <= len(scales) <= MAX_SCALES or not all(MIN_SCALE <= scale <= MAX_SCALE for scale in scales):
            limits = f"1 to {MAX_SCALES} factors between {MIN_SCALE:g} and {MAX_SCALE:g}"
            raise UserError(f"--tta-scales must be {limits}, got {given}")
        if len(set(scales)) < len(scales):
            raise UserError(f"--tta-scales must be different factors, got {given}")
        return cls(tta == "flip", tuple(map(float, scales)))

    @property
    def is_off(self) -> bool:
        """Whether the image itself is the only view."""
        return self == Views()

    def as_json(self) -> dict[str, Any]:
        """Return the settings, JSON-serializable."""
        return {"flip": self.flip, "scales": list(self.scales)}

    def __str__(self) -> str:
        scales = " ".join(f"{scale:g}" for scale in self.scales)
        return f"--tta {'flip' if self.flip else 'none'} --tta-scales {scales}"


@dataclasses.dataclass(frozen=True, eq=False)
class AveragedNetwork(Network):
    """Networks whose probabilities are averaged over all views of an image.

    The attributes of `Network` are those of the first member, except `variables`, a tuple of all members' variables.

    Attributes:
      members: the networks; they have the same classes and input size.
      views: the views of an image.
    """

    members: tuple[Network, ...] = ()
    views: Views = Views()

    def forward(self, variables: tuple, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Compute the mean prediction as logits, float32 [B,H,W,C]; see `log_mean`.

        Args:
          variables: variables of each member.
          images: uint8 or float [B,H,W,3] RGB, 0..255.
          keys: must be None, as dropout samples are not averaged over views.
        """
        assert keys is None, "dropout samples and averages of views are mutually exclusive"
        mean = log_mean_of_sigmoids if self.classes.multi_label else log_mean
        return mean(
            [
                logits
                for member, own in zip(self.members, variables, strict=True)
                for logits in _logits_of_views(member, own, images, self.views)
            ]
        )


def average(members: Sequence[Network], views: Views) -> Network:
    """Return a network that averages over members and views, or the only member if there is nothing to average."""
    first = members[0]
    if len(members) == 1 and views.is_off:
        return first
    fields = {item.name: getattr(first, item.name) for item in dataclasses.fields(Network)}
    fields["variables"] = tuple(member.variables for member in members)
    return AveragedNetwork(**fields, members=tuple(members), views=views)


def log_mean(views: Sequence[jax.Array]) -> jax.Array:
    """Return the logits whose softmax is the mean of the softmax of several logits, float32 [...,C] each.

    Logits are determined up to a constant per pixel. The result is the first logits plus the logarithm of the mean of
    p_i / p_1, which is exactly 0 where all are equal: the average of equal logits is bit-identical to them.
    """
    if len(views) == 1:
        return views[0]
    logs = [jax.nn.log_softmax(logits) for logits in views]
    ratios = jnp.stack([each - logs[0] for each in logs])
    largest = ratios.max(axis=0)
    return views[0] + (largest + jnp.log1p(jnp.expm1(ratios - largest[None]).mean(axis=0)))


def log_mean_of_sigmoids(views: Sequence[jax.Array]) -> jax.Array:
    """Return the logits whose sigmoids are the means of those of several logits, float32 [...,C] each."""
    if len(views) == 1:
        return views[0]
    logits = jnp.stack(views)
    return jax.nn.logsumexp(jax.nn.log_sigmoid(logits), axis=0) - jax.nn.logsumexp(jax.nn.log_sigmoid(-logits), axis=0)


def _logits_of_views(network: Network, variables: Any, images: jax.Array, views: Views) -> list[jax.Array]:
    """Return the logits of each view, float32 [B,H,W,C], flipped and resized back to the image."""
    size, found = images.shape[1:3], []
    for scale in views.scales:
        scaled = images
        if scale != 1:
            scaled_size = tuple(max(1, round(scale * length)) for length in size)
            scaled = _resize(images.astype(jnp.float32), scaled_size, antialias=True)  # as training resizes images
        for flipped in (False, True) if views.flip else (False,):
            logits = network.forward(variables, scaled[:, :, ::-1] if flipped else scaled)
            logits = logits[:, :, ::-1] if flipped else logits
            found.append(_resize(logits, size, antialias=False))
    return found


def _resize(arrays: jax.Array, size: tuple[int, ...], *, antialias: bool) -> jax.Array:
    """Resize [B,h,w,C] bilinearly to [B,*size,C], with the pixels' centers aligned as in PyTorch and Pillow."""
    if arrays.shape[1:3] == size:
        return arrays
    return jax.image.resize(arrays, (len(arrays), *size, arrays.shape[-1]), "linear", antialias=antialias)
