"""Custom networks, such as mine:build, which are imported only if this command or Python call names them.

Configs store only the name. Building the network of a stored config fails unless `import_network` was called first.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from segnet_jax.nn import NETWORKS
from segnet_jax.nn.network_interface import NetworkInterface, check_interface
from segnet_jax.system.custom_code import import_function
from segnet_jax.system.errors import UserError

_imported: dict[str, Any] = {}


def import_given(args: Sequence[str]) -> None:
    """Import the custom network named by this command's arguments, if any. Raises the errors of `import_network`."""
    for index, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option == "--network":
            import_network(value if equals else "".join(args[index + 1 : index + 2]))


def import_network(name: str) -> None:
    """Import a custom network, named MODULE:CLASS or MODULE:FUNCTION; do nothing for other names.

    Callers must not pass a name from a stored file.

    Raises:
      UserError: If the network cannot be imported.
    """
    if ":" in name:
        _imported[name] = import_function(name, "--network", "MODULE:CLASS, such as mine:Net")


def network_of(name: str) -> Any:
    """Return the class of a network, or the function that builds it; the name may come from a stored file.

    Raises:
      UserError: If this command did not name the custom network.
    """
    if ":" not in name:
        return NETWORKS[name]
    if name not in _imported:
        raise UserError(
            f"the network {name} is custom code, which is imported only if this command names it: add --network "
            f'{name}, in Python network="{name}"'
        )
    return _imported[name]


def build_custom_network(make: Callable[..., Any], settings: Mapping[str, Any], flag: str = "") -> NetworkInterface:
    """Build a custom network, and check it against `nn.network_interface`.

    Args:
      make: class of the network, a function that returns it, or a partial of either, whose keywords take precedence.
      settings: settings that `make` may take, by name: the config fields, num_classes, sync_axis and dtype.
      flag: the flag that names the network, for messages; "" for a network passed from Python.

    Raises:
      UserError: If the network does not implement the interface.
    """
    kind, given = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    try:
        names = settings_of(kind, settings) - given.keys()
        model = make(**{name: value for name, value in settings.items() if name in names})
        check_interface(model, settings["channels"])
        return model
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        what, why = flag or f"model {getattr(kind, '__qualname__', kind)}", " ".join(str(error).split())[:500]
        raise UserError(f"{what} does not implement the interface in segnet_jax.nn.network_interface: {why}") from error


def settings_of(kind: Callable[..., Any], known: Iterable[str]) -> set[str]:
    """Return the names of the fields of a class or the parameters of a function; with **kwargs, all known names."""
    if dataclasses.is_dataclass(kind):
        return {item.name for item in dataclasses.fields(kind) if item.init}
    parameters = inspect.signature(kind).parameters.values()
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    return set(known) if takes_any else {each.name for each in parameters}
