"""Build the site from the repository: adds its Markdown files under their paths, and the generated pages.

Links in these files are relative to the repository. Links to pages and pictures of the site stay, links to a folder
lead to its README.md, and links to other files of the repository become text, as the site lacks them. A link to a
missing file stays, and fails a strict build.
"""

import importlib
import pathlib
import posixpath
import re
import tomllib
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "data/README.md", "tests/README.md")
EXPERIMENTS = "experiments/*/*.md"
PICTURES = ("experiments/*/*.png", "experiments/*/*.jpg", "experiments/*/*.svg")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """List the experiments in the navigation."""
    pages = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("experiments/*/README.md"))]
    for entry in config.nav:
        if isinstance(entry, dict) and "Experiments" in entry:
            entry["Experiments"] = ["experiments/README.md", *pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's pages and pictures, and the generated pages."""
    for pattern in (*PAGES, EXPERIMENTS, *PICTURES):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in {
        "experiments/README.md": experiments_page(),
        "protocols.md": protocols_page(),
        "commands.md": commands_page(),
        "citation.md": citation_page(),
    }.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Adapt the page's links to the site; blocks of code are left alone."""
    folder = posixpath.dirname(page.file.src_uri)
    parts = _CODE.split(markdown)
    return "".join(part if index % 2 else relink(part, folder, files.src_uris) for index, part in enumerate(parts))


def relink(text: str, folder: str, known: Any, root: pathlib.Path = ROOT) -> str:
    """Make links into the repository lead to pages of the site, or replace them by text if there is no such page.

    Args:
      text: Markdown without code.
      folder: the page's folder in the repository.
      known: paths of the site's files.
      root: the repository.
    """

    def link(match: re.Match) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target or target.startswith("mailto:") or path in known:
            return match[0]
        page = posixpath.join(path, "README.md")
        if page in known:
            return f"[{label}]({posixpath.relpath(page, folder or '.')}{anchor})"
        return label if (root / path).exists() else match[0]

    return _LINK.sub(link, text)


def experiments_page() -> str:
    """Return the list of experiments, with the title and first paragraph of each README."""
    lines = ["# Experiments", "", "Each folder of `experiments/` contains what is needed to repeat a number.", ""]
    for path in sorted(ROOT.glob("experiments/*/README.md")):
        text = path.read_text(encoding="utf-8")
        title, first = _TITLE.search(text)[1], text.partition("\n\n")[2].partition("\n\n")[0]
        name = path.parent.name
        first = first if first[:1] not in "|`!#*" else ""
        lines += [f"## [{title}]({name}/README.md)", "", relink(first, f"experiments/{name}", ()), ""]
    return "\n".join(lines)


def protocols_page() -> str:
    """Return the page of protocols, with the comment and values of each file."""
    lines = ["# Protocols", "", "`--protocol NAME` sets the defaults of the other flags, each with its source:", ""]
    for path in sorted(ROOT.glob("segnet_jax/config/protocols/*.toml")):
        text = path.read_text(encoding="utf-8")
        tomllib.loads(text)
        comment, _, values = text.partition("\n\n")
        about = " ".join(line.lstrip("# ") for line in comment.splitlines())
        lines += [f"## {path.stem}", "", about, "", "```toml", values.strip(), "```", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Return the output of `segnet --help` and `segnet COMMAND --help-all`."""
    from segnet_jax import __main__ as script
    from segnet_jax.config.completion import flags_by_command
    from segnet_jax.config.help import help_text

    lines = ["# Commands", "", "```", script.overview(width=90), "```", ""]
    for command, flags in flags_by_command(tuple(script.commands())):
        name, _, use = command.partition(" ")
        module = importlib.import_module(f"segnet_jax.{name}")
        description = getattr(module, use.upper() if use else "DESCRIPTION")
        text = help_text(f"python -m segnet_jax.{command}", description, flags, show_all=True, width=90)
        lines += [f"## {command}", "", "```", text, "```", ""]
    return "\n".join(lines)


def citation_page() -> str:
    """Return the page on how to cite the software."""
    entries = (ROOT / "CITATION.bib").read_text(encoding="utf-8")
    return f"# Citation\n\n`CITATION.cff` contains the same for tools that read it.\n\n```bibtex\n{entries}```\n"
