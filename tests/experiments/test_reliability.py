"""Test the results of experiments/reliability: everything held, and the pages have the figures of the JSON files."""

import collections
import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "reliability"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def read(name):
    return json.loads((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def listed():
    sys.path.insert(0, str(FOLDER))
    try:
        from attack_features import feature_attacks
        from attack_list import attacks

        return [*attacks(), *feature_attacks()]
    finally:
        sys.path.remove(str(FOLDER))


def test_each_kind_is_attacked_in_three_ways_or_more_at_each_command(listed):
    counts = collections.Counter((attack.kind, attack.command) for attack in listed)
    assert min(counts.values()) >= 3 and len({kind for kind, _ in counts}) == 11
    assert len({(attack.kind, attack.command, attack.name) for attack in listed}) == len(listed)


def test_all_attacks_held_within_their_limits(listed):
    found = read("attacks.json")
    assert found["failed"] == [] and found["held"] == found["attacks"] == len(listed) - len(found["left"])
    assert set(found["dates"]) == {"first", "features"} and all(date in PAGE for date in found["dates"].values())
    names = {f"{attack.kind}|{attack.name}|{attack.command}": attack.kind for attack in listed}
    assert all(f"`{name.split('|')[1]}`" in PAGE for name in found["left"])  # the page names what was not run
    by_kind = collections.Counter(names.values()) - collections.Counter(names[name] for name in found["left"])
    assert {kind: each["attacks"] for kind, each in found["by_kind"].items()} == by_kind
    assert found["slowest_cpu_seconds"] <= 60
    assert max(found["largest_peak_beyond_usual_mib"].values()) <= 1024
    assert not any(commit.endswith("dirty") for commit in found["attacks_by_commit"])
    assert f"{found['held']} of {found['attacks']} attacks held" in PAGE
    assert f"{max(found['largest_peak_beyond_usual_mib'].values())} MiB" in PAGE
    for command in ("doctor", "begin", "predict"):
        peaks = [mib for name, mib in found["pictures_peak_beyond_usual_mib"].items() if name.startswith(f"{command},")]
        name = "train" if command == "begin" else command
        assert f"| {name} | {found['usual_peak_mib'][command]} | {max(peaks)} |" in PAGE


def test_the_figures_are_the_sums_of_two_sets_of_their_own_dates():
    found = read("attacks.json")
    sys.path.insert(0, str(FOLDER))
    try:
        from attack_summary import combine
    finally:
        sys.path.remove(str(FOLDER))
    assert combine(found["sets"]) == found
    assert sum(part["attacks"] for part in found["sets"].values()) == found["attacks"]
    for part in found["sets"].values():
        assert (
            sum(part["attacks_by_commit"].values())
            == part["attacks"]
            == sum(kind["attacks"] for kind in part["by_kind"].values())
        )


def test_the_table_of_kinds_has_the_figures_of_the_attacks():
    page = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[-1] for line in page.partition("## Attacks")[2].splitlines() if " of " in line[-60:]]
    counts = [f"{each['held']} of {each['attacks']}" for each in read("attacks.json")["by_kind"].values()]
    for count in counts:
        assert any(row.startswith(count) for row in rows), count


def test_nothing_was_written_or_contacted_outside():
    found = read("traces.json")
    assert len(found["traces"]) == 10 and all(trace["held"] for trace in found["traces"].values())
    assert not any(trace["outside"] or trace["connections"] for trace in found["traces"].values())
    for name, trace in found["traces"].items():
        assert trace["exit_code"] == (2 if "full of links" in name else 0)
    assert f"{found['links']} links" in PAGE


def test_every_flipped_bit_was_detected():
    found = read("flips.json")
    assert found["flips"] == found["detected_and_older_checkpoint_used"] == sum(found["flips_in"].values()) >= 200
    unnoticed = found["orbax_alone"].get("other arrays without an error", 0)
    assert f"{found['flips']} of {found['flips']} flipped bits" in PAGE and f"{unnoticed} of them" in PAGE
