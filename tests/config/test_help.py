"""Test the help of every command: widths, texts, sections; flag names of other tools; how the command was called."""

import dataclasses
import importlib
import re
import shlex
import sys
from typing import ClassVar

import pytest

from segnet_jax import __main__ as script
from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_names, protocol_summaries, read_protocol
from segnet_jax.config.flag_hints import HABITS, NOT_NEEDED
from segnet_jax.config.flag_specs import File, Flag, ImageSize, RunFolder, Section, flags_of
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.config.help import help_text
from segnet_jax.system.command_name import as_called
from segnet_jax.system.errors import UserError
from segnet_jax.train import DESCRIPTION

COMMANDS = [
    *(name for name in script.commands() if name != "portability"),
    *(f"portability {use}" for use in ("lower", "measure", "report")),
]


def parsers(command):
    """Return the dataclass of a command's flags, and its other flags."""
    name, _, use = command.partition(" ")
    module = importlib.import_module(f"segnet_jax.{name}")
    if use:
        return module.SUBCOMMANDS[use]
    return getattr(module, f"{name.title()}Options", Config), getattr(module, "OWN_FLAGS", ())


def printed(command, flag, capsys, monkeypatch, called="segnet", columns=80):
    name, *use = command.split()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", [f"{called} {name}", *use, flag])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"segnet_jax.{name}").main()
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_width_and_names_the_command_as_it_was_called(command, columns, capsys, monkeypatch):
    for flag in ("--help", "--help-all"):
        text = printed(command, flag, capsys, monkeypatch, columns=columns)
        assert max(map(len, text.splitlines())) <= columns
        assert text.startswith(f"usage: segnet {command}") and "python -m" not in text
        assert not re.search(r"\bSTR\b|\bINT\b|\bFLOAT\b", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_text_of_its_own_and_help_all_shows_it(command, capsys, monkeypatch):
    kind, own = parsers(command)
    flags = [*flags_of(kind), *own]
    texts = [flag.help for flag in flags]
    assert all(len(text.split()) > 1 for text in texts), [flag.name for flag in flags if len(flag.help.split()) < 2]
    assert len(set(texts)) == len(texts)
    text = printed(command, "--help-all", capsys, monkeypatch)
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("  -")]
    named = {line.replace("[no-]", "") for line in lines}
    assert {flag.option for flag in flags if not flag.is_positional} <= named


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_few_flags_and_an_example_that_can_be_parsed(command, capsys, monkeypatch):
    text = printed(command, "--help", capsys, monkeypatch)
    assert len(re.findall(r"^  --", text, re.MULTILINE)) <= 20
    joined = text.replace(" \\\n", " ")
    examples = re.findall(r"^  segnet (.*)$", joined, re.MULTILINE)
    assert examples
    kind, own = parsers(command)
    for example in examples:
        name, *words = shlex.split(example)
        assert name == command.split()[0]
        words = words[len(command.split()) - 1 :]
        for flag in own:
            if flag.option in words:
                place = words.index(flag.option)
                del words[place : place + 2]
        if kind is Config:
            parse_config(words, prog="x", description="")
        else:
            parse_flags(kind, words, prog="x", description="")


def test_the_first_flags_of_train_are_about_a_dozen():
    basic = [flag.name for flag in flags_of(Config) if flag.is_basic]
    assert 10 <= len(basic) <= 16
    assert {"protocol", "data", "image_size", "init", "epochs", "batch_size_per_device", "learning_rate"} <= set(basic)


def test_sections_name_fields_and_hold_their_basic_flags():
    for command in COMMANDS:
        kind, own = parsers(command)
        names = [item.name for item in dataclasses.fields(kind)]
        sections = getattr(kind, "SECTIONS", ())
        firsts = [names.index(section.first) for section in sections]
        assert firsts == sorted(firsts)
        section_of = {flag.name: flag.section for flag in flags_of(kind)}
        for section in sections:
            assert all(section_of[name] == section.title for name in section.basic if name != "config")


def test_each_protocol_has_a_line():
    summaries = dict(protocol_summaries())
    assert list(summaries) == protocol_names()
    for text in summaries.values():
        assert len(text) <= 56 and text.endswith(".") and text.count(".") == 1


def test_help_lists_the_protocols_one_per_line(capsys, monkeypatch):
    lines = printed("train", "--help", capsys, monkeypatch).splitlines()
    for name, text in protocol_summaries():
        assert [line.split(maxsplit=1) for line in lines if line.split()[:1] == [name]] == [[name, text]]


def test_defaults_are_those_of_the_chosen_protocol(capsys, monkeypatch):
    demo = read_protocol("demo", Config())
    monkeypatch.setattr(sys, "argv", ["segnet train"])
    with pytest.raises(SystemExit):
        parse_config(["--protocol", "demo", "--help"], prog="segnet_jax.train", description=DESCRIPTION)
    text = " ".join(capsys.readouterr().out.split())
    assert f"passes over the training split (default: {demo.epochs})" in text and demo.epochs != Config().epochs


def test_a_named_module_is_repeated_where_it_was_called_so(monkeypatch):
    text = "run python -m segnet_jax.prepare camvid"
    for called, shown in (
        ("segnet train", "run segnet prepare camvid"),
        ("python -m segnet_jax train", "run python -m segnet_jax prepare camvid"),
        ("/home/x/segnet_jax/train.py", text),
        ("pytest", text),
        ("", text),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        assert as_called(text) == shown


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of nothing."""

    SECTIONS: ClassVar = (Section("one", "json", ("json",)), Section("two", "size"))

    run: RunFolder = ""  # a run
    json: File = ""  # a file
    # lines above
    # the field
    flip: bool = True
    size: ImageSize = (1, 2)  # of an image; default: none at all
    rates: tuple[float, ...] = ()
    """A string below."""


def test_help_texts_are_read_from_the_source():
    texts = {flag.name: flag.help for flag in flags_of(Options)}
    assert texts == {
        "run": "a run",
        "json": "a file",
        "flip": "lines above the field",
        "size": "of an image; default: none at all",
        "rates": "A string below.",
    }
    by_name = {flag.name: flag for flag in flags_of(Options, Options(json="x"))}
    assert (by_name["json"].default, by_name["json"].section, by_name["json"].is_basic) == ("x", "one", True)
    assert (by_name["flip"].arity, by_name["flip"].section, by_name["flip"].is_basic) == (0, "one", False)
    assert (by_name["size"].arity, by_name["size"].metavar, by_name["size"].number) == (2, "HEIGHT WIDTH", int)
    assert (by_name["rates"].arity, by_name["rates"].metavar) == (None, "X ...")


def test_the_layout_of_help():
    flags = [
        Flag("run", "a run", "RUN", is_positional=True, is_required=True),
        Flag("out", "where to write the " + "very " * 8 + "long text", "FOLDER", default="x"),
        Flag("flip", "flip", arity=0, default=True),
        Flag("kind", "kinds", "{" + ",".join(["abcdefgh"] * 8) + "}"),
        Flag("rare", "seldom used", "N", is_basic=False),
    ]
    text = help_text("segnet x", "What it\ndoes.\n\nExample:\n  segnet x " + "--out y " * 8, flags, width=60)
    assert text == (
        "usage: segnet x RUN [flags]\n\nWhat it does.\n\nExample:\n"
        "  segnet x --out y --out y --out y --out y --out y --out y \\\n      --out y --out y\n\n"
        "arguments:\n  RUN                a run\n\n"
        "options:\n"
        "  --out FOLDER       where to write the very very very very\n"
        "                     very very very very long text (default:\n"
        "                     x)\n"
        "  --[no-]flip        flip (default: on)\n"
        "  --kind {abcdefgh,abcdefgh,abcdefgh,abcdefgh,abcdefgh,\n"
        "      abcdefgh,abcdefgh,abcdefgh}\n"
        "                     kinds\n\n"
        "general:\n"
        "  -h, --help         show this help\n"
        "  --help-all         show all flags\n"
        "  -q, --quiet        print only warnings and errors\n"
        "  -v, --verbose      print more, with times\n\n"
        "These are 3 of 4 flags; segnet x --help-all shows all."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0.1"], "unknown flag --lr; did you mean --learning-rate X?"),
        (["--lr=0.1"], "unknown flag --lr; did you mean --learning-rate X?"),
        (["--batch_size", "8"], "unknown flag --batch-size; did you mean --batch-size-per-device N?"),
        (["-b", "8"], "unknown flag -b; did you mean --batch-size-per-device N?"),
        (["--gpus", "2"], "did you mean --devices N?"),
        (["--output-dir", "x"], "did you mean --run RUN?"),
        (["--num-workers", "2"], "there are no loader workers"),
        (["--learning-rat", "1"], "nearest: --learning-rate"),
        (["--no-resum"], "nearest: --no-resume"),
        (["--zzz"], "unknown flag --zzz (see "),
        (["--image-size", "96x128"], "for height 96 and width 128 write --image-size 96 128"),
        (["--image-size", "96"], "--image-size needs 2 values, HEIGHT WIDTH, got 96"),
        (["--epochs"], "--epochs needs a value, a whole number, got none"),
        (["--data", "--resume"], "--data needs a value, FOLDER, got none"),
        (["--epochs", "1.5"], "--epochs must be a whole number, got 1.5"),
        (["--learning-rate", "fast"], "--learning-rate must be a number, got fast"),
        (["--fit", "squash"], "--fit must be one of stretch, letterbox, crop, got squash"),
        (["--flip", "yes"], "unexpected argument 'yes'"),
        (["photos"], "unexpected argument 'photos'"),
    ],
    ids=str,
)
def test_a_wrong_flag_is_answered_with_the_right_one(words, message):
    with pytest.raises(UserError) as error:
        parse_config(words, prog="segnet_jax.train", description="")
    assert message in str(error.value)


def test_each_habit_is_answered_with_a_flag_of_some_command_and_hides_none():
    tables = [parsers(command) for command in COMMANDS]
    known = {flag.option for kind, own in tables for flag in (*flags_of(kind), *own)}
    meant = {option for flags in HABITS.values() for flag in flags for option in re.findall(r"--[\w-]+", flag)}
    assert meant - known - {"--config"} == set()
    assert not HABITS.keys() & NOT_NEEDED.keys()
    assert {f"--{name}" for name in NOT_NEEDED} & known == set()


def test_flags_are_parsed_as_given():
    config = parse_config(
        "--image-size 96 128 --no-flip --map 1=2 --map 3=4 --stage-channels 8 16 --learning_rate 1e-2 --seed=3".split(),
        prog="x",
        description="",
    )
    assert (config.image_size, config.flip, config.map) == ((96, 128), False, ("1=2", "3=4"))
    assert (config.stage_channels, config.learning_rate, config.seed) == ((8, 16), 0.01, 3)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("predict", [], "RUN is missing: run folder"),
        ("report", [], "RUN is missing"),
        ("predict", ["runs/x", "photos", "--output-dir", "y"], "did you mean --out FOLDER?"),
        ("export", ["runs/x", "runs/y"], "unexpected argument 'runs/y'"),
        ("portability measure", ["--run", "x"], "--json FILE is missing"),
    ],
)
def test_arguments_of_other_commands(command, words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_flags(parsers(command)[0], words, prog="x", description="")


def test_positional_arguments_may_stand_before_and_after_flags():
    predict, evaluate = (parsers(name)[0] for name in ("predict", "evaluate"))
    options = parse_flags(predict, ["runs/x", "a.jpg", "--size", "native"], prog="x", description="")
    assert (options.run, options.paths, options.size) == ("runs/x", ("a.jpg",), "native")
    assert parse_flags(evaluate, ["--split", "val", "runs/x"], prog="x", description="").run == "runs/x"
