"""Summaries of the outcomes of attacks, for `attacks.json`: one of each set of attacks, and their sums."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any


def summarize(results: Sequence[Mapping[str, Any]], usual: Mapping[str, int], left: Sequence[str]) -> dict[str, Any]:
    """Return the summary of the outcomes of a set of attacks.

    Args:
      results: an outcome for each attack that was run.
      usual: command -> its peak of memory on ordinary files, bytes.
      left: names of the attacks that were not run.
    """

    def counts(name: str) -> dict[str, dict[str, int]]:
        groups: dict[str, dict[str, int]] = {}
        for one in results:
            group = groups.setdefault(one[name], {"attacks": 0, "held": 0})
            group["attacks"] += 1
            group["held"] += not one["wrong"]
        return dict(sorted(groups.items()))

    largest = {
        command: round(max(one["beyond"] for one in results if one["command"] == command) / 2**20)
        for command in sorted({one["command"] for one in results})
    }
    commits = [one["commit"] for one in results]  # several, if a start was continued after a change
    return {
        "attacks_by_commit": {commit: commits.count(commit) for commit in dict.fromkeys(commits)},
        "date": datetime.date.today().isoformat(),
        "attacks": len(results),
        "left": list(left),
        "held": sum(not one["wrong"] for one in results),
        "by_kind": counts("kind"),
        "by_command": counts("command"),
        "slowest_cpu_seconds": max(one["seconds"] for one in results),
        "usual_peak_mib": {command: round(peak / 2**20) for command, peak in sorted(usual.items())},
        "largest_peak_beyond_usual_mib": largest,
        "pictures_peak_beyond_usual_mib": {
            f"{one['command']}, {one['name']}": round(one["beyond"] / 2**20)
            for one in results
            if one["kind"] == "pictures"
        },
        "failed": [one for one in results if one["wrong"]],
    }


def combine(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of the summaries of several sets, each run at its own date, and the summaries themselves.

    Where two sets have a command on ordinary files, the first one's peak is shown.
    """
    each = list(parts.values())

    def added(name: str) -> dict[str, dict[str, int]]:
        groups: dict[str, dict[str, int]] = {}
        for part in each:
            for key, counts in part[name].items():
                group = groups.setdefault(key, {"attacks": 0, "held": 0})
                for count in group:
                    group[count] += counts[count]
        return dict(sorted(groups.items()))

    def joined(name: str, choose) -> dict[str, int]:
        keys = sorted({key for part in each for key in part[name]})
        return {key: choose([part[name][key] for part in each if key in part[name]]) for key in keys}

    return {
        "command": "python experiments/reliability/attacks.py",
        "dates": {name: part["date"] for name, part in parts.items()},
        "attacks_by_commit": joined("attacks_by_commit", sum),
        "attacks": sum(part["attacks"] for part in each),
        "left": [name for part in each for name in part["left"]],
        "held": sum(part["held"] for part in each),
        "by_kind": added("by_kind"),
        "by_command": added("by_command"),
        "slowest_cpu_seconds": max(part["slowest_cpu_seconds"] for part in each),
        "usual_peak_mib": joined("usual_peak_mib", lambda values: values[0]),
        "largest_peak_beyond_usual_mib": joined("largest_peak_beyond_usual_mib", max),
        "pictures_peak_beyond_usual_mib": joined("pictures_peak_beyond_usual_mib", max),
        "failed": [one for part in each for one in part["failed"]],
        "sets": dict(parts),
    }
