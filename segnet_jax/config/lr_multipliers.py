"""The value of `--lr-mult`: learning-rate multipliers of parts of the network."""

from collections.abc import Sequence

from segnet_jax.nn.network_interface import ROLES, SECTIONS
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError

NAMES = (*SECTIONS, *ROLES)


def check_multipliers(multipliers: Sequence[str]) -> None:
    """Check the values of the field, each NAME=FACTOR.

    Raises:
      UserError: If a name is unknown or given twice, or a factor is not a number from 0 to 100.
    """
    seen = set()
    for each in multipliers:
        name, _, factor = each.partition("=")
        if name not in NAMES:
            raise UserError(
                f"--lr-mult must be NAME=FACTOR, with NAME one of {', '.join(NAMES)}, got {each!r}"
                f"{nearest_hint(name, NAMES)}"
            )
        if name in seen:
            raise UserError(f"--lr-mult names {name} twice: use one factor")
        seen.add(name)
        try:
            is_valid = 0 <= float(factor) <= 100
        except ValueError:
            is_valid = False
        if not is_valid:
            raise UserError(f"--lr-mult needs a factor from 0 to 100 for {name}, got {factor!r}")
