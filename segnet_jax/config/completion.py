"""Shell completion of commands, flags, choices, protocols and runs."""

import importlib
from collections.abc import Iterator, Mapping, Sequence

from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_names
from segnet_jax.config.flag_specs import CONFIG_FLAG, Flag, flags_of, with_own

_GENERAL = ("--help", "--help-all", "--quiet", "--verbose")
_INITIAL_WEIGHTS = ("vgg16", "vgg16_bn", "vgg19", "none")
_DATA = ("camvid", "synthetic")

# One script for both shells: zsh supports bash completions by bashcompinit. If the function returns no candidates, the
# shell completes file names.
_ZSH = """#compdef segnet
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""
_SCRIPT = """
_segnet_runs() {{
  local folder
  for folder in runs/*/; do
    [[ -f "${{folder}}config.toml" ]] && printf '%s ' "${{folder%/}}"
  done
}}

_segnet() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" flag="" word
  local flags="" values="" number=0 given=0 words=0 i=2
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W "{commands}" -- "$current"))
    return
  fi
  case "$command" in
{subcommands}
  esac
  case "$command" in
{flags}
  esac
  for (( ; i < COMP_CWORD; i++ )); do
    word="${{COMP_WORDS[i]}}"
    if [[ "$word" == --* ]]; then flag="$word"; given=0; else given=$((given + 1)); words=$((words + 1)); fi
  done
  if [[ "$current" == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$current"))
    return
  fi
  case "$command $flag" in
{values}
  esac
  if (( given >= number )); then
    values=""
    case "$command" in
{positional}
    esac
  fi
  COMPREPLY=($(compgen -W "$values" -- "$current"))
}}
complete -o bashdefault -o default -F _segnet segnet
"""
_SUBCOMMAND = """    {name})
      if (( COMP_CWORD == 2 )); then
        COMPREPLY=($(compgen -W "{words}" -- "$current"))
        return
      fi
      command="{name} ${{COMP_WORDS[2]}}"
      i=3
      ;;"""


def script(shell: str, commands: Sequence[str]) -> str:
    """Return the completion script of a shell, for `eval "$(segnet completion bash)"`.

    Args:
      shell: "bash" or "zsh".
      commands: module names.
    """
    flags = dict(flags_by_command(commands))
    subcommands: dict[str, list[str]] = {}
    for command in flags:
        name, _, word = command.partition(" ")
        subcommands.setdefault(name, []).extend([word] * bool(word))
    text = _SCRIPT.format(
        commands=" ".join(commands),
        subcommands="\n".join(
            _SUBCOMMAND.format(name=name, words=" ".join(words)) for name, words in subcommands.items() if words
        ),
        flags="\n".join(_case([name], f'flags="{" ".join(_options(each))}"') for name, each in flags.items()),
        values="\n".join(_value_cases(flags)),
        positional="\n".join(
            _case([name], _first_word(flag))
            for name, each in flags.items()
            for flag in [flag for flag in each if flag.is_positional][:1]
            if _values(flag)
        ),
    )
    return (_ZSH if shell == "zsh" else "") + text


def flags_by_command(commands: Sequence[str]) -> Iterator[tuple[str, list[Flag]]]:
    """Yield each command, or command and subcommand, with its flags.

    Args:
      commands: module names. A module's flags are the fields of its `Options`, or of `Config`, and its `OWN_FLAGS`; or
        those in its `SUBCOMMANDS`, name -> (dataclass, additional flags).
    """
    for name in commands:
        module = importlib.import_module(f"segnet_jax.{name}")
        kind = getattr(module, f"{name.title()}Options", Config)
        kinds = {f"{name} {word}": pair for word, pair in getattr(module, "SUBCOMMANDS", {}).items()}
        for command, (each, own) in (kinds or {name: (kind, getattr(module, "OWN_FLAGS", ()))}).items():
            yield command, with_own(flags_of(each), [*([CONFIG_FLAG] if each is Config else []), *own])


def _options(flags: Sequence[Flag]) -> list[str]:
    options = [flag.option for flag in flags if not flag.is_positional]
    options += [flag.option.replace("--", "--no-", 1) for flag in flags if flag.is_switch]
    return [*dict.fromkeys(options), *_GENERAL]


def _value_cases(flags: Mapping[str, Sequence[Flag]]) -> Iterator[str]:
    """Yield one case per set of values, for all flags that take them."""
    alike: dict[tuple[int, str], list[str]] = {}
    for command, each in flags.items():
        for flag in each:
            if not flag.is_positional and not flag.is_switch:
                number = 1000 if flag.arity is None else flag.arity
                alike.setdefault((number, _values(flag)), []).append(f"{command} {flag.option}")
    for (number, values), patterns in alike.items():
        yield _case(patterns, f'number={number} values="{values}"')


def _values(flag: Flag) -> str:
    """Return the words to complete a flag's value from, as a double-quoted string of the shell; "" for files."""
    if flag.choices:
        return " ".join(flag.choices)
    if flag.name == "protocol":
        return " ".join(protocol_names())
    if flag.name == "init":
        return " ".join([*_INITIAL_WEIGHTS, "$(_segnet_runs)"])
    if flag.metavar.removesuffix(" ...") == "RUN":
        return "$(_segnet_runs)"
    if flag.name == "data" and not flag.is_positional:
        return " ".join(_DATA)
    return ""


def _first_word(flag: Flag) -> str:
    """Return shell code that offers the values of a positional argument, only for the first word if it takes one."""
    values = f'values="{_values(flag)}"'
    return values if flag.arity is None else f"(( words == 0 )) && {values}"


def _case(patterns: Sequence[str], commands: str) -> str:
    quoted = "|".join(f'"{pattern}"' for pattern in patterns)
    return f"    {quoted}) {commands} ;;"
