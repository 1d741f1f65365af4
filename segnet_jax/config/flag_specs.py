"""Flags of a command, read from the dataclass that they fill: names, values, help texts, sections.

A flag's help text is the comment of its field. A dataclass may group its flags by a class attribute
`SECTIONS: ClassVar[tuple[Section, ...]]`; without it, `--help` shows all flags in one list.
"""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from tyro.conf import Fixed, Positional, UseAppendAction, arg

from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError
from segnet_jax.system.flag_names import option_of

# Field types with a metavar for the help and error messages.
Name = Annotated[str, arg(metavar="NAME")]
Pattern = Annotated[str, arg(metavar="PATTERN")]
File = Annotated[str, arg(metavar="FILE")]
Files = Annotated[tuple[str, ...], arg(metavar="FILE")]
Folder = Annotated[str, arg(metavar="FOLDER")]
DataFolder = Annotated[str, arg(metavar="FOLDER")]
RunFolder = Annotated[str, arg(metavar="RUN")]
RunFolders = Annotated[tuple[str, ...], arg(metavar="RUN")]
ImageSize = Annotated[tuple[int, int], arg(metavar="HEIGHT WIDTH")]
NumDevices = Annotated[str, arg(metavar="N")]
Suffix = Annotated[str, arg(metavar="SUFFIX")]
SequenceName = Annotated[str, arg(metavar="SEQUENCE")]
ValueMap = Annotated[tuple[str, ...], arg(metavar="OLD=NEW"), UseAppendAction]
ClassNames = Annotated[tuple[str, ...], arg(metavar="CLASS")]
Degrees = Annotated[float, arg(metavar="DEGREES")]
GrayRange = Annotated[tuple[int, int], arg(metavar="BLACK WHITE")]
Loggers = tuple[Literal["wandb", "mlflow"], ...]
Given = Annotated[tuple[str, ...], Fixed]  # set from Python only; has no flag

NETWORK_NAMES = ("segnet", "segnet-basic", "unet")
NetworkName = Annotated[str, arg(metavar="NAME")]
CustomNetwork = Annotated[str, arg(metavar="MODULE:CLASS")]


def check_network_name(name: str) -> None:
    """Check that a network name is built in, or has the form MODULE:CLASS of a custom network.

    Raises:
      UserError: If it is neither; the message names the nearest built-in one.
    """
    if ":" not in name and name not in NETWORK_NAMES:
        hint = nearest_hint(name, NETWORK_NAMES)
        raise UserError(f"--network must be one of {', '.join(NETWORK_NAMES)}, or MODULE:CLASS, got {name}{hint}")


@dataclass(frozen=True)
class Section:
    """A group of flags in the help.

    Attributes:
      title: its heading.
      first: its first field; it extends to the first field of the next section.
      basic: the fields that `--help` shows; `--help-all` shows all.
    """

    title: str
    first: str
    basic: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flag:
    """A flag, or a positional argument.

    Attributes:
      name: name of its field.
      text: help text of a flag that is not a field.
      metavar: placeholder for its values, such as "HEIGHT WIDTH" or "FILE ..."; "" for a switch.
      choices: the allowed values; empty if any value is allowed.
      number: int or float if its values are numbers, else None.
      arity: number of values; None for any number.
      default: default value; None if there is none.
      is_positional: whether it is given without a name.
      is_required: whether it has no default.
      section: heading of its group.
      is_basic: whether `--help` shows it.
      owner: dataclass of its field; None if it is not a field.
    """

    name: str
    text: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    number: type | None = None
    arity: int | None = 1
    default: Any = None
    is_positional: bool = False
    is_required: bool = False
    section: str = "options"
    is_basic: bool = True
    owner: type | None = None

    @property
    def help(self) -> str:
        """Help text. That of a field is read from the source on first use, as most commands never need it."""
        return self.text if self.owner is None else _help_texts(self.owner).get(self.name, "")

    @property
    def option(self) -> str:
        """Its name on the command line, such as --image-size."""
        return option_of(self.name)

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value and has a --no- form."""
        return self.arity == 0


CONFIG_FLAG = Flag("config", "TOML file with config fields; flags override it", "FILE", section="recipe")
"""A flag of all commands with a training config; it is not a config field."""


def flags_of(kind: type, default: Any = None) -> tuple[Flag, ...]:
    """Return the flags of a dataclass, in the order of its fields.

    Args:
      kind: the dataclass.
      default: an instance with the default values; None: the class defaults.
    """
    annotations = typing.get_type_hints(kind, include_extras=True)
    sections = {section.first: section for section in getattr(kind, "SECTIONS", ())}
    section = Section("options", "")
    flags = []
    for item in dataclasses.fields(kind):
        if Fixed in getattr(annotations[item.name], "__metadata__", ()):
            continue
        section = sections.get(item.name, section)
        value = item.default if default is None else getattr(default, item.name)
        is_required = value is dataclasses.MISSING
        flags.append(
            Flag(
                item.name,
                **_values_of(annotations[item.name]),
                default=None if is_required else value,
                is_required=is_required,
                section=section.title,
                is_basic=not sections or item.name in section.basic,
                owner=kind,
            )
        )
    return tuple(flags)


def words_of(flag: Flag, value: Any) -> list[str]:
    """Return the command-line words that set a flag to a value."""
    if flag.is_switch:
        return [flag.option if value else flag.option.replace("--", "--no-", 1)]
    values = value if isinstance(value, list | tuple) else (value,)
    if flag.arity == 1:  # several values: the flag may be repeated
        return [word for each in values for word in (flag.option, str(each))]
    return [flag.option, *map(str, values)]


def flag_words(kind: type, settings: Mapping[str, Any]) -> list[str]:
    """Convert keyword arguments to command-line words for a dataclass's flags; None values are omitted."""
    flags = {flag.name: flag for flag in (*flags_of(kind), CONFIG_FLAG)}
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = [f"{key}={each}" for key, each in value.items()]
        words += words_of(flags.get(name, Flag(name, "", arity=0 if isinstance(value, bool) else 1)), value)
    return words


def with_own(flags: Sequence[Flag], own: Sequence[Flag]) -> list[Flag]:
    """Return the fields' flags and the additional ones, each after the first flag of its section."""
    ordered = list(flags)
    for flag in own:
        ordered = [each for each in ordered if each.name != flag.name]
        place = next((index for index, each in enumerate(ordered, 1) if each.section == flag.section), len(ordered))
        ordered.insert(place, flag)
    return ordered


def _values_of(annotation: Any) -> dict[str, Any]:
    """Return the attributes of `Flag` that follow from a field's type."""
    markers: tuple[Any, ...] = ()
    if typing.get_origin(annotation) is Annotated:
        annotation, *rest = typing.get_args(annotation)
        markers = tuple(rest)
    named = next((each.metavar for each in markers if getattr(each, "metavar", None)), "")
    found: dict[str, Any] = {"is_positional": Positional in markers}
    kinds, arity, more = [annotation], 1, ""
    if any(getattr(each, "nargs", None) == "*" for each in markers):
        arity = None
    if typing.get_origin(annotation) is tuple:
        kinds = list(typing.get_args(annotation))
        arity = len(kinds)
        if kinds[-1] is ...:
            kinds, arity, more = kinds[:1], *((1, "") if UseAppendAction in markers else (None, " ..."))
    elif typing.get_origin(annotation) in (Union, types.UnionType):
        is_one = all(typing.get_origin(each) is not tuple for each in typing.get_args(annotation))
        kinds, arity = [str], 1 if is_one else None
    element = kinds[0]
    if element is bool:
        return found | {"arity": 0}
    choices = typing.get_args(element) if typing.get_origin(element) is Literal else ()
    number = element if element in (int, float) else None
    shown = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X"}.get(element, "TEXT")
    metavar = (named or " ".join([shown] * len(kinds))) + more
    return found | {"metavar": metavar, "choices": choices, "number": number, "arity": arity}


@functools.cache
def _help_texts(kind: type) -> dict[str, str]:
    """Return the help text of each field: its comment on the same lines or above, or the string below it."""
    texts: dict[str, str] = {}
    for each in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        try:
            source = textwrap.dedent(inspect.getsource(each))
        except OSError:  # the source is not installed, or the command runs under another name
            continue
        comments, code = {}, set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("# ")
            elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                code.update(range(token.start[0], token.end[0] + 1))
        body = ast.parse(source).body[0].body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            lines = [comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
            lines = lines or _comment_above(node.lineno, comments, code)
            if not lines and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                lines = str(following.value.value).split()
            texts[node.target.id] = " ".join(lines)
    return texts


def _comment_above(line: int, comments: dict[int, str], code: set[int]) -> list[str]:
    """Return the lines of the comment that ends right above a line."""
    first = line
    while first - 1 in comments and first - 1 not in code:
        first -= 1
    return [comments[number] for number in range(first, line)]
