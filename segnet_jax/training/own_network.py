"""A user's own network, such as mine:build: imported only where this command line or this Python call names it.

Configs store the name alone. Building the network of a stored config fails unless `import_network` was called before.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from segnet_jax.nn import NETWORKS
from segnet_jax.nn.contract import NetworkContract, check_contract
from segnet_jax.system.errors import UserError
from segnet_jax.system.own_code import import_function

_imported: dict[str, Any] = {}


def import_given(args: Sequence[str]) -> None:
    """Import the own network that the arguments of this command name, if any; raises as `import_network`."""
    for place, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option == "--network":
            import_network(value if equals else "".join(args[place + 1 : place + 2]))


def import_network(name: str) -> None:
    """Import an own network; do nothing for other names. Callers must not pass a name from a stored file.

    Args:
      name: module and class, or module and function, of the network: see `build_own_network`.

    Raises:
      UserError: If it cannot be imported.
    """
    if ":" in name:
        _imported[name] = import_function(name, "--network")


def network_of(name: str) -> Any:
    """Return the class of a network, or the function that builds it.

    Args:
      name: a key of NETWORKS, or an own network's name, which may come from a stored file.

    Raises:
      UserError: If it is an own network that this command did not name.
    """
    if ":" not in name:
        return NETWORKS[name]
    if name not in _imported:
        raise UserError(
            f"the network {name} is own code, which is imported only if this command names it: add --network {name}, "
            f'in Python network="{name}"'
        )
    return _imported[name]


def settings_of(network: Any) -> set[str]:
    """Return the names of a network's settings: the fields of its class, or the parameters of its function."""
    if dataclasses.is_dataclass(network):
        return {item.name for item in dataclasses.fields(network) if item.init}
    return set(inspect.signature(network).parameters)


def build_own_network(name: str, settings: dict[str, Any], channels: int) -> NetworkContract:
    """Return an own network, after checking it against `nn.contract`.

    Args:
      name: its name.
      settings: the settings that it has.
      channels: channels of the images.

    Raises:
      UserError: If it does not keep the contract.
    """
    try:
        model = network_of(name)(**settings)
        check_contract(model, channels)
        return model
    except UserError:
        raise
    except Exception as error:  # anything may go wrong in foreign code
        what = " ".join(str(error).split())[:500]
        raise UserError(f"--network {name} does not keep the contract of segnet_jax/nn/contract.py: {what}") from error
