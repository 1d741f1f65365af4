"""The value of `--class-weights`: a rule, one weight per class, or weights by class name."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Annotated

import tyro

from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError

RULES = ("none", "matlab", "auto-present", "auto-global", "auto-sqrt", "caffe")

_BY_NAME = re.compile(r"\s*([^=]*?)\s*=\s*([^\s=]+)(?=\s|$)")  # names may contain spaces

ClassWeights = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="RULE|WEIGHT...|NAME=WEIGHT...",
        instance_from_str=" ".join,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=str.split,
    ),
]
"""Type of the field; the command line joins all words after the flag with spaces."""


def given_weights(text: str) -> Sequence[float] | dict[str, float] | None:
    """Parse weights: a list in class order, or a dict by class name; return None if the text is a rule.

    Raises:
      UserError: If it is neither a rule nor weights.
    """
    words = text.split()
    if "=" in text:
        return _by_name(text)
    if len(words) == 1 and not _is_number(words[0]):
        if text not in RULES:
            raise UserError(
                f"--class-weights must be one of {', '.join(RULES)}, one number per class, or NAME=WEIGHT for some "
                f"classes, got {text!r}{nearest_hint(text, RULES)}"
            )
        return None
    weights = [_number(word, text) for word in words]
    if not any(weights):
        raise UserError(f"--class-weights needs at least one weight above 0, got {text!r}")
    return weights


def _by_name(text: str) -> dict[str, float]:
    weights, end = {}, 0
    for match in _BY_NAME.finditer(text):
        if match.start() != end or not match[1]:
            break
        if match[1] in weights:
            raise UserError(f"--class-weights names {match[1]} twice, got {text!r}")
        weights[match[1]], end = _number(match[2], text), match.end()
    if text[end:].strip():
        raise UserError(f"--class-weights must be NAME=WEIGHT for each class, got {text[end:].strip()!r} in {text!r}")
    return weights


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _number(word: str, text: str) -> float:
    value = float(word) if _is_number(word) else math.nan
    if not 0 <= value <= 1e6:
        raise UserError(f"--class-weights must be numbers from 0 to 1000000, got {word!r} in {text!r}")
    return value


def _class_of(name: str, classes: Sequence[str], source: str) -> str:
    """Return the class with a name; ignore case if the match is unique.

    Raises:
      UserError: If there is no such class.
    """
    lower = {each: each.lower() for each in classes}
    alike = [each for each in classes if lower[each] == name.lower()]
    if name in classes or len(alike) == 1:
        return name if name in classes else alike[0]
    near = difflib.get_close_matches(name.lower(), lower.values(), n=1)
    nearest = [each for each in classes if near == [lower[each]]]
    raise UserError(
        f"--class-weights names {name!r}, which is not a class of {source}"
        + (f"; nearest: {nearest[0]}" if nearest else f", which has {', '.join(classes)}")
    )


def weights_of_classes(text: str, classes: Sequence[str], source: str) -> list[float] | None:
    """Return a weight for each class, 1 for classes that the text does not name; None if the text is a rule.

    Args:
      text: value of the field.
      classes: class names.
      source: name of the dataset, for messages.

    Raises:
      UserError: If there are more or fewer weights than classes, or a name is unknown.
    """
    weights = given_weights(text)
    if weights is None:
        return None
    if isinstance(weights, dict):
        found = {_class_of(name, classes, source): weight for name, weight in weights.items()}
        if len(found) < len(weights):
            raise UserError(f"--class-weights names a class twice, got {text!r}")
        weights = [found.get(name, 1.0) for name in classes]
    if len(weights) != len(classes):
        raise UserError(
            f"--class-weights has {len(weights)} weights, but {source} has {len(classes)} classes: give one for each "
            f"of {', '.join(classes)}, in this order, or NAME=WEIGHT for some"
        )
    if not any(weights):
        raise UserError(f"--class-weights sets all classes of {source} to weight 0: use at least one weight above 0")
    return weights
