"""What a shell runs to complete the commands and their flags, as tyro writes it."""

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from typing import Annotated, Union

import tyro

from segnet_jax.config.fields import Config

# tyro offers flags where a file is wanted, and files nowhere: bash adds them where nothing else is left.
_BASH = """
_segnet() {{
  local word words=()
  {generated}
  for word in "${{COMPREPLY[@]}}"; do
    if [[ -n $word && ( $word != -* || ${{COMP_WORDS[COMP_CWORD]}} == -* ) ]]; then words+=("$word"); fi
  done
  COMPREPLY=("${{words[@]}}")
}}
complete -o bashdefault -o default -F _segnet segnet
"""


def script(shell: str, commands: Sequence[str]) -> str:
    """A script to be read by a shell: `eval "$(segnet completion bash)"`.

    Args:
      shell: "bash" or "zsh".
      commands: names of modules, whose flags are the fields of their `NAMEOptions`, or of the training's config.
    """
    kinds = []
    for name in commands:
        module = importlib.import_module(f"segnet_jax.{name}")
        kinds.append(Annotated[getattr(module, f"{name.title()}Options", Config), tyro.conf.subcommand(name)])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(Union[tuple(kinds)], prog="segnet", args=["--tyro-print-completion", shell])  # noqa: UP007
    text = printed.getvalue()
    if shell == "bash":
        text += _BASH.format(generated=re.findall(r"^complete -F (\w+) segnet$", text, re.MULTILINE)[0])
    return text
