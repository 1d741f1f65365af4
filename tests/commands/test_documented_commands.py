"""Check the commands of README.md and the other pages: parsed by default, run as written by a slow test."""

import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import own_folders
import pytest
from PIL import Image

from segnet_jax import __main__ as script
from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import CONFIG_FLAG, flags_of, with_own
from segnet_jax.config.flags import parse_config
from segnet_jax.system.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("data/*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.md"))
    + tuple(ROOT.glob("experiments/**/README.md"))
    if path.name != "CHANGELOG.md"
)
PLACEHOLDERS = {"DIR": "data", "RUN": "runs/a", "RUNS": "runs", "FOLDER": "folder", "FILE": "file"}
GENERAL = {"--help", "--help-all", "--version", "--quiet", "--verbose"}
OTHERS = {"--check", "--index-url", "--durations", "--logdir"}  # of ruff, pip, pytest and TensorBoard


def commands_of(text):
    """Return the commands of a page's code blocks and code spans, as lists of words without comments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line.removeprefix("# ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in (*lines, *(span.replace("\n", " ") for span in spans)):
        for part in re.split(r"&&|;|\|", line.split(" #")[0]):
            words = part.split()
            if words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith("segnet_jax."):
                found.append([words[2].removeprefix("segnet_jax."), *shlex.split(" ".join(words[3:]))])
            elif words[:1] == ["segnet"] and len(words) > 1 and words[1] in script.COMMANDS:
                found.append([words[1], *shlex.split(" ".join(words[2:]))])
    return found


def known_flags(name, use=""):
    """Return flag -> description of a command."""
    module = importlib.import_module(f"segnet_jax.{name}")
    options = script_options(module, name)
    kind, own = module.SUBCOMMANDS[use] if use else (options, getattr(module, "OWN_FLAGS", ()))
    flags = with_own(flags_of(kind), (*own, CONFIG_FLAG) if kind is Config else own)
    return {f"--{flag.name.replace('_', '-')}": flag for flag in flags if not flag.is_positional}


def script_options(module, name):
    return getattr(module, f"{name.title()}Options", Config)


def faults_of(words):
    """Return the faults of a command: unknown flags, invalid values, missing values."""
    name, *rest = words
    use = rest.pop(0) if name == "portability" and rest and not rest[0].startswith("-") else ""
    known, faults = known_flags(name, use), []
    for index, word in enumerate(rest):
        if not word.startswith("--") or word in GENERAL:
            continue
        flag, _, value = word.partition("=")
        if flag not in known:
            faults.append(f"{flag} is no flag of {name} {use}")
            continue
        values = [value] if value else []
        for following in rest[index + 1 :] if not value else ():
            if following.startswith("--"):
                break
            values.append(following)
        choices = known[flag].choices
        if choices and values and values[0] not in choices and values[0] not in ("NAME", "..."):
            faults.append(f"{flag} {values[0]}: not one of {choices}")
    return faults


def documented():
    return [(page, words) for page in PAGES for words in commands_of((ROOT / page).read_text(encoding="utf-8"))]


def test_the_pages_have_commands():
    by_page = {page: sum(page == each for each, _ in documented()) for page in PAGES}
    assert by_page["README.md"] >= 10 and by_page["data/README.md"] >= 5 and sum(by_page.values()) > 50
    assert {words[0] for _, words in documented()} >= set(script.COMMANDS) - {"check"}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_has_only_flags_and_values_that_exist(page):
    faults = [
        f"{shlex.join(words)}: {fault}" for each, words in documented() if each == page for fault in faults_of(words)
    ]
    assert not faults


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--devises", "8"],
        ["train", "--optimizer", "sgdd"],
        ["portability", "lower", "--widht", "0.25"],
        ["evaluate", "runs/a", "--splits", "test"],
    ],
)
def test_a_command_with_a_mistake_would_be_found(words):
    assert len(faults_of(words)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_the_training_commands_of_a_page_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for each, (name, *flags) in documented():
        if each == page and name == "train" and not {"...", "--help-all", "--resume"} & set(flags):
            try:
                config = parse_config(flags, prog="segnet_jax.train", description="")
            except UserError as error:  # a file that only a reader has
                assert re.search(r"(FILE|my|RUN|your)\S*", str(error)), (flags, error)
                continue
            assert isinstance(config, Config)


@pytest.mark.parametrize("page", ["README.md", "data/README.md", "docs/guide.md"])
def test_every_flag_that_a_page_mentions_exists(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    uses = [(name, "") for name in script.COMMANDS if name != "portability"]
    uses += [("portability", use) for use in importlib.import_module("segnet_jax.portability").SUBCOMMANDS]
    known = GENERAL | OTHERS | {flag for name, use in uses for flag in known_flags(name, use)}
    assert not set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known


@pytest.mark.parametrize("page", PAGES)
def test_the_scripts_that_a_page_names_exist_and_know_their_flags(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for path, rest in re.findall(r"python ((?:experiments|tests)/[\w/]+\.py)([^\n`]*)", text):
        source = (ROOT / path).read_text(encoding="utf-8")
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", rest.split(" #")[0]):
            assert flag in source or flag.removeprefix("--").replace("-", "_") in source, (path, flag)


# --- the README as written, from photos and from CamVid to exported networks ---

# Flags that shorten the README's training commands, which take minutes to hours; otherwise they run as written.
SMALL = "--image-size 24 32 --depth 1 --width 0.0625 --init none --max-steps 2 --devices 1"
SMALL_EIGHT = SMALL.replace("--devices 1", "--fake-devices 8")


class Folder:
    """A user's folder in which to run the README's commands."""

    def __init__(self, path):
        self.path = path
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "SEGNET_JAX_CACHE": str(path / "cache")}

    def run(self, command, added=""):
        words = [sys.executable if word == "python" else word for word in shlex.split(f"{command} {added}")]
        ended = subprocess.run(words, cwd=self.path, env=self.environment, capture_output=True, text=True)
        assert ended.returncode == 0, (command, ended.stdout[-2000:], ended.stderr[-2000:])
        return ended.stdout


def command_starting(start):
    """Return the README's command that starts with these words, without its comment."""
    (line,) = {
        part.split(" #")[0].strip().removesuffix("...")
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        for part in line.split("&&")
        if part.strip().startswith(start)
    }
    return line


@pytest.fixture
def folder(tmp_path):
    samples = own_folders.scenes()
    own_folders.own(tmp_path / "photos", samples)
    own_folders.table_toml(tmp_path / "photos")
    for name, image, _ in samples["val"]:
        own_folders.save(tmp_path / "new_photos" / f"{name}.png", image)
    return Folder(tmp_path)


@pytest.mark.slow
def test_the_readmes_commands_go_from_photos_to_an_exported_network(folder):
    printed = folder.run(command_starting("python -m segnet_jax.doctor"))
    assert Image.open(folder.path / "look.png").size[0] > 100
    last = printed.splitlines()[-1].strip()
    assert last.startswith(command_starting("python -m segnet_jax.train --data photos").strip())
    folder.run(last, SMALL)
    folder.run(command_starting("python -m segnet_jax.predict"))
    predicted = sorted((folder.path / "runs/photos-1/predictions-1").glob("*.png"))
    assert {path.stem for path in (folder.path / "new_photos").iterdir()} <= {path.stem for path in predicted}

    page = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    images = np.zeros((2, 24, 32, 3), np.uint8)
    (folder.path / "use.py").write_text(
        f"import numpy as np, segnet_jax\nimages = np.zeros({images.shape}, np.uint8)\n{code}\n"
        "assert predictions.shape == images.shape[:3] and len(network.class_names) == len(network.colors) == 11\n"
    )
    folder.run("python use.py")
    (export,) = re.findall(r"`(python -m segnet_jax\.export runs/photos-1[^`]*)`", page)
    pytest.importorskip("onnx")
    if importlib.util.find_spec("tensorflow") is None:
        export = export.replace(" saved-model", "")
    folder.run(export)


@pytest.mark.slow
def test_the_readmes_commands_train_on_camvid_and_score_the_test_split(folder):
    scenes = own_folders.scenes(12, 2)
    samples = {"train": scenes["train"][:10], "val": scenes["val"], "test": scenes["train"][10:]}
    for split, each in samples.items():
        for name, image, label in each:
            label = np.where(label == 255, 11, label).astype(np.uint8)
            own_folders.save(folder.path / f"frames/{split}/{name}.png", image)
            own_folders.save(folder.path / f"frames/{split}annot/{name}.png", label)
        line = "/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n"
        lines = [line.format(split=split, name=name) for name, _, _ in each]
        (folder.path / f"frames/{split}.txt").write_text("".join(lines))
    eight = command_starting("python -m segnet_jax.train --devices 8 --protocol camvid-matlab-2018")
    folder.run(
        eight.replace("--devices 8", ""), f"{SMALL_EIGHT} --data frames --split-rule tutorial --batch-size-per-device 1"
    )
    folder.run(command_starting("python -m segnet_jax.train --devices 1"), f"{SMALL} --data frames")
    printed = folder.run(command_starting("python -m segnet_jax.evaluate"))
    assert re.search(r"mIoU +[\d.]+ %", printed) and "test" in printed
