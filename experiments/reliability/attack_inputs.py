"""Malicious inputs for `attack_list.py`: each function returns `prepare(run, folder)`, which changes a copy of a run.

`prepare` may return a dict of changes to the call: "flags", "data", "image", "file", "limit", "env", "stderr".
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Callable

import numpy as np
from attack_pictures import Make, Prepare, png

# --- files of a run ---


def replaced(name: str, make: Make) -> Prepare:
    """Replace a file or folder of the run."""

    def prepare(run, folder):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return prepare


def link_to_victim(path):
    """Link to the victim's folder, or in place of a file to a file in it."""
    victim = next(each for each in path.parents if (each / "victim").is_dir()) / "victim"
    path.symlink_to(victim if not path.suffix and path.name != "lock" else victim / "thesis.txt")


def sparse(path):
    """Write a sparse file of 3 GB."""
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)


def a_socket(path):
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def endless(path):
    """Link to /dev/zero."""
    path.symlink_to("/dev/zero")


def text(content: str) -> Make:
    """Write a file with this content."""
    return lambda path: path.write_text(content)


def config(change: Callable[[str], str]) -> Prepare:
    """Edit a config."""

    def prepare(run, folder):
        path = run / "config.toml"
        path.write_text(change(path.read_text()))

    return prepare


def setting(name: str, value: str) -> Prepare:
    """Change one existing value of a config."""

    def change(text):
        changed, count = re.subn(rf"(?m)^{name} = .*$", lambda _: f"{name} = {value}", text)
        assert count == 1, f"{name} is not in the config"
        return changed

    return config(change)


def line(content: str) -> Prepare:
    """Append a line to a config."""
    return config(lambda text: f"{text}{content}\n")


def custom_code(content: str | None = None, name: str = "", value: str = "") -> Prepare:
    """Name a module in the config, placed next to and in the run, that writes to the victim's folder if imported."""

    def prepare(run, folder):
        code = f"open({str(folder / 'victim' / 'owned')!r}, 'w')\nNetwork = hook = object\n"
        for place in (folder, run):
            (place / "evil.py").write_text(code)
        (line(content) if content else setting(name, value))(run, folder)

    return prepare


def gone(steps: int = 0) -> Prepare:
    """Delete a run's checkpoints; with `steps`, also the files that refer to them, and add a metric of that step."""

    def prepare(run, folder):
        shutil.rmtree(run / "checkpoints")
        if steps:
            for name in ("outcome.json", "result.json"):
                (run / name).unlink(missing_ok=True)
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"kind": "train", "step": steps, "loss": 1.0}) + "\n")

    return prepare


# --- checkpoints ---


def sealed(change: Make) -> Prepare:
    """Change every checkpoint and rewrite its manifest, so that its checksums are valid."""

    def prepare(run, folder):
        from segnet_jax.training.manifest import MANIFEST, finalize

        for place in [*(run / "checkpoints" / "newest").iterdir(), *(run / "checkpoints" / "best").iterdir()]:
            facts = json.loads((place / MANIFEST).read_text())
            (place / MANIFEST).unlink()
            change(place)
            partial = place.rename(place.with_name(f".{place.name}.partial"))
            finalize(partial, place, {name: facts[name] for name in ("step", "config", "state")})

    return prepare


def meta(**changes) -> Prepare:
    """Change the metadata of the checkpoints."""

    def change(place):
        path = place / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return sealed(change)


def not_finite(place):
    """Set all arrays of batch statistics to NaN, in a fork, since a process that started JAX cannot fork safely."""
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    try:
        import orbax.checkpoint as ocp

        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore((place / "state").absolute())

            def spoiled(value):
                return (
                    {name: spoiled(each) for name, each in value.items()} if isinstance(value, dict) else value * np.nan
                )

            tree["batch_stats"] = spoiled(tree["batch_stats"])
            shutil.rmtree(place / "state")
            checkpointer.save((place / "state").absolute(), tree)
        os._exit(0)
    finally:
        os._exit(1)


# --- other files and flags ---


def file(name: str, make: Make) -> Prepare:
    """Make a file that the command reads, such as weights."""

    def prepare(run, folder):
        make(folder / name)
        return {"file": folder / name}

    return prepare


def flagged(*flags: str, **given) -> Prepare:
    """Add flags, in which {run}, {victim} and {folder} are replaced; `given` changes the call."""

    def prepare(run, folder):
        places = {"run": run, "victim": folder / "victim", "folder": folder}
        return {"flags": [flag.format(**places) for flag in flags], **given}

    return prepare


def calling(**given) -> Prepare:
    """Change only the call, such as its limits."""
    return lambda run, folder: given


def evaluation(classes: list[str]) -> Prepare:
    """Give the stored evaluation of a run other class names."""

    def prepare(run, folder):
        path = run / "evaluations" / "dataset.json"
        content = json.loads(path.read_text()) | {"classes": classes, "colors": [[0, 0, 0]] * len(classes)}
        path.write_text(json.dumps(content))

    return prepare


def metrics(name: str) -> Prepare:
    """Add a line with a strange name to the metrics of a run without a stored evaluation."""

    def prepare(run, folder):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": "val", "step": 99, "iou": {name: 0.5}, name: 1}) + "\n")
        (run / "evaluations" / "dataset.json").unlink()

    return prepare


def measured(**changes) -> Prepare:
    """Make a file of `portability measure`, for `portability report` to read."""
    content = {"portability": 1, "name": "a", "device": "a", "settings": {}, "precisions": {}} | changes
    return file("measured.json", text(json.dumps(content)))


def both(*steps: Prepare) -> Prepare:
    """Combine several preparations."""

    def prepare(run, folder):
        given: dict = {}
        for step in steps:
            given |= step(run, folder) or {}
        return given

    return prepare


def make_victim(folder: pathlib.Path) -> pathlib.Path:
    """Write another user's files, with names that commands clean up or replace."""
    for name, data in {
        **{"thesis.txt": b"thesis", "thesis.json": b"{\n", "notebook.json": b'{"cells": []}', ".hidden/kept": b"x"},
        **{"newest/.git/kept": b"x", ".x.1.tmp": b"x", "images_0000001.npz": b"x", "1/manifest.json": b"{}"},
        **{"photo.png": png(8, 8), "network.safetensors": b"mine", "step_0000003.png": b"mine", "latest.png": b"mine"},
        **{"val_00000.png": png(8, 8), "weights.npz": b"PK\x03\x04mine", "page.html": b"<p>mine", "page.md": b"# Mine"},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
