"""Test messages of user errors: one line per kind, with the fix and the kind; faults as data."""

import dataclasses
import json

import pytest

from segnet_jax.system.command import run_command
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed, shown


def test_an_error_without_a_file_is_only_its_message():
    error = UserError("--epochs must be\n  positive")
    assert str(error) == "--epochs must be positive"
    assert error.faults == (Fault("usage", "", "--epochs must be positive"),)


def test_a_fault_of_a_file_shows_the_message_the_fix_and_the_kind():
    error = UserError("a.png is empty", kind="empty-file", file="a.png", fix="fetch it again")
    assert str(error) == "a.png is empty; fix: fetch it again [empty-file]"
    assert (error.kind, error.file) == ("empty-file", "a.png")


def test_many_faults_have_one_line_per_kind_with_five_files_and_a_count(capsys):
    empty = [Fault("empty-file", f"{i}.png", f"{i}.png is empty", "fetch it again") for i in range(8)]
    cut = Fault("cut-off", "x.png", "x.png is cut off")

    def command():
        raise UserErrors("/d", [*empty[:4], cut, *empty[4:], cut])

    with pytest.raises(SystemExit) as exit_:
        run_command(command)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 8 faults in /d: 0.png is empty; 1.png is empty; 2.png is empty; 3.png is empty; 4.png is empty; "
        "and 3 more; fix: fetch it again [empty-file]",
        "error: 1 fault in /d: x.png is cut off [cut-off]",
    ]


def test_a_duplicate_fault_counts_once_with_its_first_fix():
    first = Fault("exif-rotation", "a.jpg", "a.jpg is turned", "--exif apply")
    error = UserErrors("/d", [first, Fault("exif-rotation", "a.jpg", "a.jpg is turned", "see which it is")])
    assert error.faults == (first,)
    assert str(error) == "1 fault in /d: a.jpg is turned; fix: --exif apply [exif-rotation]"


def test_the_complete_list_survives_json():
    faults = [Fault("empty-file", f"{i}.png", f"{i}.png is empty", "fetch it again") for i in range(20)]
    restored = json.loads(json.dumps([dataclasses.asdict(fault) for fault in UserErrors("/d", faults).faults]))
    assert [Fault(**each | {"choices": tuple(each["choices"])}) for each in restored] == faults


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b.png", "a b.png"),
        ("ü 猫 \N{GRINNING FACE}", "ü 猫 \N{GRINNING FACE}"),
        ("narrow\u202fspace", "narrow\u202fspace"),
        ("<script>'\"\\", "<script>'\"\\"),
        ("a\nb\0\x1b[2J\u2028\u202e", "a\\nb\\x00\\x1b[2J\\u2028\\u202e"),
        ("\udcff", "\\udcff"),
    ],
)
def test_unprintable_characters_of_a_name_are_escaped(name, expected):
    assert shown(name) == expected


def test_a_list_shows_the_first_five_items_and_a_count():
    assert listed(list("abcde")) == "a, b, c, d, e"
    assert listed(list("abcdefg"), "; ") == "a; b; c; d; e; and 2 more"
