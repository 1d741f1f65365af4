"""Compare compiled programs across targets, precisions and versions, and with earlier results."""

from collections.abc import Sequence
from typing import Any

from segnet_jax.benchmarks.portability.side_by_side import MachineComparison, names_of

TITLE = "The steps compiled for several chips"
_SAME = 0.005  # relative difference below which a number counts as unchanged


def compare_programs(files: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]] = ()) -> MachineComparison:
    """Return a table with one column per file of `portability compile`.

    For each step, a section lists the changes since the `earlier` file of the same target and settings.
    """
    names = names_of([_title(one) for one in files])
    steps = list(dict.fromkeys(step for one in files for step in one["programs"]))
    sections = [("Target", _table([_about(one) for one in files]))]
    for step in steps:
        tables = [_numbers(one["programs"][step]) if step in one["programs"] else {} for one in files]
        sections.append((f"Step: {step}", _table(tables)))
    by_key = {_key(one): one for one in earlier}
    for step in steps:
        changed = [_changes(one, by_key.get(_key(one)), step) for one in files]
        if any(changed):
            sections.append((f"Changed: {step}", _table(changed)))
    warnings = [
        f"no earlier file has the same target and settings as {name}"
        for name, one in zip(names, files, strict=True)
        if earlier and _key(one) not in by_key
    ]
    columns = [(name, one["precision"]) for name, one in zip(names, files, strict=True)]
    return MachineComparison(columns, warnings, sections, TITLE)


def _title(one: dict[str, Any]) -> str:
    config = one["config"]
    words = [f"{one['num_devices']} x {one['target']['name']}", f"batch {config['batch_size_per_device']}"]
    if config.get("pooling", "floor") != "floor":
        words.append(config["pooling"])
    if one["num_devices"] > 1:
        words.append("synchronized statistics" if config.get("sync_batch_norm", True) else "local statistics")
    return ", ".join(words)


def _key(one: dict[str, Any]) -> tuple:
    return one["target"]["name"], one["num_devices"], one["precision"], repr(sorted(one["config"].items()))


def _table(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return rows (name, one value per column) for all names, in order of first appearance."""
    return [(name, [column.get(name) for column in columns]) for name in dict.fromkeys(n for c in columns for n in c)]


def _about(one: dict[str, Any]) -> dict[str, Any]:
    libraries = {name: version for name, version in one["versions"].items() if name not in ("optax", "numpy")}
    size = " x ".join(map(str, one["config"]["image_size"]))
    return {"date": one["date"], "commit": one.get("commit"), "image size": size, **libraries}


def _numbers(program: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a program by row name."""
    convolutions, collectives = program["convolutions"], program["collectives"]
    synchronous = [each for each in collectives if not each["is_async"]]
    rows = {
        "kernels": program["num_kernels"],
        "kernels below 4 MB": program["small_kernels"],
        **{f"kernels: {kind}": count for kind, count in program["kernels"].items()},
        "MB per image": program["mb_per_image"],
    }
    for part, moved in program["parts"].items():
        rows[f"MB per image: {part}"] = moved["mb_read_per_image"] + moved["mb_written_per_image"]
    rows |= {
        "convolutions": convolutions["count"],
        **{f"convolutions: {window}": count for window, count in convolutions["windows"].items()},
        **{f"epilogue: {what}": count for what, count in convolutions["fused_epilogues"].items()},
        "GFLOP of convolutions": convolutions["gflop"] or None,
        "copies and transposes": program["copies"]["count"],
        "MB per image of copies and transposes": program["copies"]["mb_per_image"],
        "collectives": len(collectives),
        "collectives, synchronous": len(synchronous),
        "MB of collectives": sum(each["bytes"] for each in collectives) / 1e6,
        "MB of synchronous collectives": sum(each["bytes"] for each in synchronous) / 1e6,
        "synchronous collectives of gradients": sum(each["part"] == "gradient_sum" for each in synchronous),
        "temporary memory, MB": program["memory"]["temporary"] / 1e6,
        "peak memory, MB": program["memory"]["peak"] / 1e6,
        "compile time, s": program["compile_seconds"],
    }
    for name, value in program.get("compiler_analysis", {}).items():
        rows[f"the compiler's {name.replace('_', ' ')}"] = value
    if limit := program["limit"]:
        rows["images/s at the limit of every kernel"] = limit["images_per_second"]
        for each in limit["at_efficiencies"]:
            fractions = f"{100 * each['convolutions']:.0f} % (convolutions) and {100 * each['others']:.0f} % (others)"
            rows[f"images/s at {fractions}"] = each["images_per_second"]
    return rows


def _changes(one: dict[str, Any], old: dict[str, Any] | None, step: str) -> dict[str, str]:
    """Return the changes since the earlier file by row name, as text."""
    if old is None or step not in old["programs"] or step not in one["programs"]:
        return {}
    before, now = (_numbers(each["programs"][step]) for each in (old, one))
    changed = {}
    for name in dict.fromkeys([*now, *before]):
        first, second = before.get(name) or 0, now.get(name) or 0
        if name != "compile time, s" and abs(second - first) > _SAME * abs(first):
            relative = f" ({100 * (second / first - 1):+.1f} %)" if first else ""
            changed[name] = f"{first:,.6g} -> {second:,.6g}{relative}"
    return changed
