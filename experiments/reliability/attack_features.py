"""Attacks on sweeps, folds, ensembles, calibration, CSV, own code, buckets, channels and exported networks.

A second set for `attacks.py`: at least three for each kind and each command that the kind concerns.
"""

import os
import shutil
import struct
from functools import partial

from attack_commands import Attack
from attack_feature_inputs import (
    OWNED,
    SWEEP,
    as_run,
    bucket,
    calibration,
    copied,
    deep_png,
    exported,
    given_config,
    made_below,
    many_lists,
    metadata,
    on_a_full_disk,
    photographed,
    result,
    stand_in,
    sweep,
    sweep_file,
)
from attack_inputs import (
    a_socket,
    both,
    calling,
    custom_code,
    endless,
    file,
    flagged,
    line,
    link_to_victim,
    replaced,
    setting,
    sparse,
    text,
)
from attack_list import DEEP, KEYS, STRANGE
from attack_pictures import pictures, tiff

EXPORTS = ("evaluate-export", "predict-export", "init-export")
AVERAGES = ("ensemble", "predict-both")
ESCAPE = '"\\u001b[2J\\u202e"'
NEW_KEYS = {"logger": '["wandb"]', "upload": '"s3://street/runs"', "profile": "3", "find_lr": "true"}
SAMPLES = (struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 3, 1, 65_535))  # of a pixel of a TIFF
CODE = OWNED + "Network = hook = jitter = object\n"


def feature_attacks() -> list[Attack]:
    """Return all attacks of the set."""
    return [
        *links(),
        *keys(),
        *addresses(),
        *custom_modules(),
        *experiments(),
        *bounds(),
        *hostile_buckets(),
        *control_characters(),
        *overwriting(),
        *channels(),
        *exit_codes(),  # these start new interpreters
    ]


def first_fold(then):
    """Return a `prepare` for the first run of a cross-validation, which is resumed."""
    made = both(setting("folds", "2"), setting("fold", "1"), then)
    return both(copied("cv/fold-1", made), flagged("--resume"))


def other(then):
    """Return a `prepare` for a second run of an ensemble."""
    return copied("other", then)


def links():
    """Yield links below a folder of runs, in the second run of an ensemble, and in an exported folder."""
    ready = sweep("")
    for name in ("seed=0", "sweep.md", "sweep.json"):
        yield Attack("links", f"{name} is a link", "sweep", both(ready, made_below(f"swept/{name}", link_to_victim)))
    inner = copied("swept/seed=0", replaced("checkpoints/best", link_to_victim))
    yield Attack("links", "a checkpoint of a run is a link", "sweep", both(ready, inner))
    yield Attack("links", "a link to another run", "sweep", both(ready, as_run("swept/seed=0")))
    yield Attack("links", "fold-1 is a link", "folds", made_below("cv/fold-1", link_to_victim))
    yield Attack("links", "fold-2 is a link to another run", "folds", as_run("cv/fold-2"))
    resumed = both(as_run("cv/fold-1"), flagged("--resume"))
    yield Attack("links", "fold-1 is a link to another run, resumed", "folds", resumed)
    inner = copied("cv/fold-1", replaced("checkpoints/best", link_to_victim))
    yield Attack("links", "a checkpoint of a fold is a link", "folds", inner)
    for command in AVERAGES:
        for name in ("checkpoints/best", "config.toml", "calibration.json"):
            made = other(replaced(name, link_to_victim))
            yield Attack("links", f"{name} of the second run is a link", command, made)
    for name in ("calibration.json", "evaluations", "checkpoints/best"):
        yield Attack("links", f"{name} is a link", "calibrate", replaced(name, link_to_victim))
        yield Attack("links", f"{name} is a link", "csv", replaced(name, link_to_victim))
    for name in ("profile", "profile/plugins", "profile/plugins/profile"):
        yield Attack("links", f"{name} is a link", "profile", replaced(name, link_to_victim))
    for command in EXPORTS:
        codes = (0, 2)  # only some commands read these
        yield Attack("links", "the card is a link", command, exported(replaced("README.md", link_to_victim)), codes)
        made = exported(replaced("calibration.json", link_to_victim))
        yield Attack("links", "calibration.json is a link", command, made, codes)
        made = exported(replaced("network.safetensors", link_to_victim))
        yield Attack("links", "network.safetensors is a link", command, made)


def keys():
    """Yield keys of one start in files: for `--config`, of a sweep, of stored configs and of an exported network."""
    kind, given = "keys of one start", KEYS | NEW_KEYS
    for name, value in given.items():
        yield Attack(kind, f"{name} in --config", "config", given_config(f"{name} = {value}\n"))
    for name in ("coordinator", "run", "upload", "find_lr"):
        yield Attack(kind, f"{name} in [base]", "sweep", sweep(f"{name} = {given[name]}\n"))
        varied = sweep("", f"[grid]\n{name} = [{given[name]}]\n")
        yield Attack(kind, f"{name} in [grid]", "sweep", varied)
    named = both(file("c.toml", text('coordinator = "192.0.2.1:80"\n')), sweep('config = "{folder}/c.toml"\n'))
    yield Attack(kind, "coordinator in a config file of the sweep", "sweep", named)
    for command in ("train", "evaluate", "predict", "export"):
        for name in ("logger", "upload", "profile"):
            yield Attack(kind, name, command, line(f"{name} = {NEW_KEYS[name]}"))
    for name in ("coordinator", "run", "logger"):
        yield Attack(kind, f"{name} of the first fold", "folds", first_fold(line(f"{name} = {given[name]}")))
        for command in AVERAGES:
            made = other(line(f"{name} = {given[name]}"))
            yield Attack(kind, f"{name} of the second run", command, made)
        for command in EXPORTS:
            made = exported(metadata(network={name: "192.0.2.1:80"}))
            yield Attack(kind, f"{name} in the network's settings", command, made)


def addresses():
    """Yield addresses in files; the stand-ins for the packages that would connect change the victim's files."""
    kind, never = "keys of one start", both(stand_in("s3fs"), stand_in("huggingface_hub"))
    for name, value in (("data", '"s3://street/x"'), ("init", '"s3://street/x"'), ("init", '"hf://someone/street"')):
        place = f"{name} at {value.partition(':')[0][1:]}"
        yield Attack(kind, f"{place} in [base]", "sweep", both(never, sweep("", f"[grid]\n{name} = [{value}]\n")))
        without = SWEEP.removeprefix("[base]\n").replace(
            'data = "synthetic"' if name == "data" else 'init = "none"', ""
        )
        without += f"{name} = {value}\n"
        yield Attack(kind, f"{place} in --config", "config", both(never, file("mine.toml", text(without))))
        begun = both(never, setting(name, value), replaced("checkpoints", lambda path: None))
        gone = [replaced(each, lambda path: None) for each in ("outcome.json", "metrics.jsonl", "result.json")]
        yield Attack(kind, f"{place} in a run without checkpoints", "resume", both(begun, *gone))
    for command in ("evaluate", "calibrate", "csv", "ensemble"):
        for scheme in ("s3", "gs"):
            made = both(never, stand_in("gcsfs"), copied("other"), setting("data", f'"{scheme}://street/x"'))
            yield Attack(kind, f"data at {scheme}", command, made)
    for command in ("calibrate", "csv"):
        yield Attack(kind, "coordinator", command, line('coordinator = "192.0.2.1:80"'))


def custom_modules():
    """Yield files that name a module, which writes a file if it is imported."""
    kind, evil = "own code", stand_in("evil", CODE)
    for name, value in (("network", "evil:Network"), ("augment", "evil:jitter"), ("own", "model=evil.Network")):
        value = f'["{value}"]' if name == "own" else f'"{value}"'
        yield Attack(kind, f"{name} in [base]", "sweep", both(evil, sweep(f"{name} = {value}\n")))
        yield Attack(kind, f"{name} in --config", "config", both(evil, given_config(f"{name} = {value}\n")))
        for command in AVERAGES:
            codes = (0, 2) if name == "augment" else (2,)  # which only training uses
            yield Attack(kind, f"{name} of the second run", command, both(evil, other(setting(name, value))), codes)
        for command in EXPORTS:
            made = both(evil, exported(metadata(network={name: value.strip('"')})))
            yield Attack(kind, f"{name} in the network's settings", command, made)
        yield Attack(kind, f"{name} of the first fold", "folds", both(evil, first_fold(setting(name, value))))
    for command in ("train", "evaluate", "predict", "export"):
        codes = (2,) if command == "train" else (0, 2)
        made = custom_code(name="augment", value='"evil:hook"')
        yield Attack(kind, "an augmentation", command, made, codes)
        yield Attack(
            kind, "a network given from Python", command, custom_code(name="own", value='["model=evil.Network"]')
        )
    grid = sweep("", '[grid]\nnetwork = ["evil:Network"]\n')
    yield Attack(kind, "a network in [grid]", "sweep", both(evil, grid))
    lr = sweep('lr_mult = ["--network=evil:Network"]\n')
    yield Attack(kind, "a flag inside a value", "sweep", both(evil, lr))


def experiments():
    """Yield configs that differ from the checkpoints in a field of a new feature."""
    for command in ("train", "evaluate", "predict", "export"):
        for name, value in (("network", '"unet"'), ("channels", "4"), ("swa_epochs", "1")):
            yield Attack("one experiment", f"{name} edited", command, setting(name, value))
    for command in AVERAGES:
        for name, value in (("seed", "7"), ("width", "0.125"), ("network", '"unet"')):
            made = other(setting(name, value))
            yield Attack("one experiment", f"{name} of the second run edited", command, made)
    for command in AVERAGES:
        for name in ("a list", "classes with escapes", "no state"):
            made = other(STRANGE[name])
            yield Attack("strange checkpoints", f"{name} in the second run", command, made, (3,))


def bounds():
    """Yield files that are huge, endless, deep or no files."""
    wrong = {"a pipe": os.mkfifo, "/dev/zero": endless, "3 GB": sparse, "a socket": a_socket}
    for kind, make in wrong.items():
        yield Attack("bounds", f"the sweep's file is {kind}", "sweep", sweep_file(make))
        yield Attack("bounds", f"--config is {kind}", "config", file("mine.toml", make))
        yield Attack("bounds", f"calibration.json is {kind}", "predict", replaced("calibration.json", make))
        made = other(replaced("config.toml", make))
        yield Attack("bounds", f"config.toml of the second run is {kind}", "ensemble", made)
        yield Attack("bounds", f"config.toml of the second run is {kind}", "predict-both", made)
        made = both(copied("cv/fold-1", replaced("config.toml", make)), flagged("--resume"))
        yield Attack("bounds", f"config.toml of the first fold is {kind}", "folds", made)
        for command in EXPORTS:
            made = exported(replaced("network.safetensors", make))
            yield Attack("bounds", f"network.safetensors is {kind}", command, made)
    for kind, content in DEEP.items():
        yield Attack("bounds", f"the sweep's file has deep {kind}", "sweep", sweep_file(text(content)))
        yield Attack("bounds", f"--config has deep {kind}", "config", file("mine.toml", text(content)))
    many = sweep("", f"[grid]\nseed = {list(range(2000))}\n")
    yield Attack("bounds", "two thousand runs", "sweep", many)
    named = {
        "NaN": '{"temperature": NaN, CONDITIONS}',
        "10**400": f'{{"temperature": 1{"0" * 400}, CONDITIONS}}',
        "a negative temperature": '{"temperature": -2, CONDITIONS}',
        "deep lists": "[" * 9000,
    }
    for name, content in named.items():
        made = replaced("calibration.json", calibration(content))
        yield Attack("bounds", f"calibration.json has {name}", "predict", made)
    for name in ("report", "export"):
        codes = (0, 2)
        yield Attack("bounds", "result.json of twenty million lists", name, replaced("result.json", many_lists), codes)


def hostile_buckets():
    """Yield buckets, as their package would list them, and addresses."""
    refused = {
        "300 GB": bucket('[("a.png", 3 * 10**11)]'),
        "a million objects": bucket('[(f"{n}.png", 1) for n in range(10**6)]'),
        "an object that ends early": bucket('[("a.png", 100)]', "return b'x'"),
        "an object that is longer than stated": bucket('[("a.png", 100)]', "return bytes(10**6)"),
    }
    for name, made in refused.items():
        yield Attack("bounds", name, "bucket", made)
    named = {"..": "../../victim/owned", "an absolute name": "/tmp/x", "a long name": "n" * 300}
    for name, given in named.items():
        yield Attack("links", f"an object named {name}", "bucket", bucket(f"[({given!r}, 1)]"))
    for name, given in (("an escape", "\x1b[2J.png"), ("a mark", "\u202egnp.png"), ("a line break", "a\nb.png")):
        yield Attack("control characters", f"an object with {name}", "bucket", bucket(f"[({given!r}, 1)]"))
    errors = {"an error of many lines": "x\ny\n\x1b[2J", "an error with an escape": "\x1b]0;x\x07", "no words": ""}
    for name, words in errors.items():
        made = bucket("[]", opened=f"raise RuntimeError({words!r})")
        yield Attack("exit codes", name, "bucket", made)
        put = stand_in(
            "s3fs",
            f"__version__ = '99'\nclass S3FileSystem:\n def __init__(self, **_): raise PermissionError({words!r})\n",
        )
        yield Attack("exit codes", name, "upload", both(put, flagged("--upload", "s3://street/runs")))
    for address in ("s3://key:secret@street/x", "http://street/x", "s3://street/../x"):
        yield Attack("keys of one start", f"--upload {address}", "upload", flagged("--upload", address))


def control_characters():
    """Yield names with what a terminal obeys."""
    kind = "control characters"
    lines = {"a key": f"{ESCAPE} = 1\n", "a value": f"loss = {ESCAPE}\n", "the dataset": f"leave_out = {ESCAPE}\n"}
    for name, content in lines.items():
        yield Attack(kind, f"{name} in [base]", "sweep", sweep(content))
        yield Attack(kind, f"{name} in --config", "config", given_config(content))
        made = other(line(content) if name == "a key" else setting(*content.strip().split(" = ")))
        for command in AVERAGES:
            yield Attack(kind, f"{name} of the second run", command, made)
    yield Attack(kind, "the name of a run", "sweep", sweep("", f"[runs.{ESCAPE}]\nseed = 1\n"))
    yield Attack(kind, "a value of the grid", "sweep", sweep("", f"[grid]\nleave_out = [{ESCAPE}]\n"))
    for name in ("\x1b[2J.png", "\u202egnp.png", "\x1b]0;x\x07_000001.png"):
        yield Attack(kind, f"an image {name!a}", "csv", both(photographed(name), csv_too()), (0, 2))
    for command in EXPORTS:
        escaped = ["\x1b[2J\u202e", *"abcdefghij"]
        yield Attack(kind, "class names", command, exported(metadata(classes=escaped)))
        yield Attack(kind, "a key of the settings", command, exported(metadata(network={"\x1b[2J": 1})))
        yield Attack(kind, "a network's name", command, exported(metadata(network={"network": "\x1b[2J\u202e"})))
    evil = "\x1b[2J\u202e| <script>alert(1)</script>\n# x"
    card = {
        "the split of a result": result(split=evil),
        "the protocol": setting("protocol", '"<script>|[x](javascript:a)"'),
        "the number of images of a result": result(num_images=evil),
        "class names of a result": result(per_class={evil: {"iou": 0.5}}),
    }
    for name, made in card.items():
        yield Attack(kind, f"card: {name}", "export", made, (0, 2))


def csv_too():
    """Add `--csv` to the flags that another step has given."""
    return lambda run, folder: {"flags": ["--csv", str(folder / "images.csv"), "--data", str(folder / "data")]}


def overwriting():
    """Yield outputs that are files of somebody else or of the run."""
    kind = "overwriting"
    for where in ("{victim}/thesis.txt", "{victim}/notebook.json", "{run}/metrics.jsonl", "{run}/checkpoints/x.csv"):
        yield Attack(kind, f"--csv {where}", "csv", flagged("--csv", where))
        yield Attack(kind, f"--csv {where}", "ensemble", both(copied("other"), flagged("--csv", where)))
    mine = made_below("victim/scores.csv", text("image,pixels,accuracy,mIoU\nmine\n"))
    yield Attack(kind, "--csv of a user's table", "csv", both(mine, flagged("--csv", "{victim}/scores.csv")))
    for where in ("thesis.txt", "newest", "1"):
        out = f"victim/{where}" if where == "thesis.txt" else "victim"
        named = sweep("", f'[runs."{where}"]\nseed = 1\n') if where != "thesis.txt" else sweep("")
        yield Attack(kind, f"--out {where}", "sweep", both(named, at(out)))
        yield Attack(kind, f"--run {where}", "folds", at(f"victim/{where}"))
    for name in ("sweep.md", "sweep.json"):
        made = both(sweep(""), made_below(f"swept/{name}", text("# Mine")))
        yield Attack(kind, f"{name} of the user", "sweep", both(made, at("swept")))
    for where in ("{victim}", "{victim}/thesis.txt", "{run}/config.toml"):
        made = both(copied("other"), flagged("--out", where))
        yield Attack(kind, f"--out {where}", "predict-both", made)
    card = made_below("victim/README.md", text("# Mine\n"))
    for more in (["--overwrite"], [], ["--overwrite", "--json", "{victim}/README.md"]):
        flags = flagged("--format", "safetensors", "--out", "{victim}", *more)
        yield Attack(kind, f"a user's README.md {more}", "export", both(card, flags), (0, 2))


def at(name: str):
    """Name an output below the folder of the attack; a sweep may add its table there."""
    return lambda run, folder: {"out": folder / name, "adds": ("sweep.md", "sweep.json")}


def exit_codes():
    """Yield limits of the machine."""
    kind = "exit codes"
    yield Attack(kind, "a full disk", "csv", on_a_full_disk("--csv", "{full}/images.csv"), (4,))
    out = lambda run, folder: {"out": folder / "full"}  # noqa: E731
    yield Attack(kind, "a full disk", "sweep", both(sweep(""), on_a_full_disk(), out), (4,))
    yield Attack(kind, "a full disk", "folds", both(on_a_full_disk(), out), (2, 4))
    averaged = both(copied("other"), on_a_full_disk("--csv", "{full}/images.csv"))
    yield Attack(kind, "a full disk", "ensemble", averaged, (4,))
    ready = {
        "csv": calling(),
        "sweep": sweep(""),
        "folds": calling(),
        "ensemble": copied("other"),
    }
    for command, made in ready.items():
        yield Attack(kind, "ulimit -n 20", command, both(made, calling(limit="-n 20")))
        yield Attack(kind, "ulimit -v 1500000", command, both(made, calling(limit="-v 1500000")))
    long = "n" * 300
    yield Attack(kind, "--csv of 300 letters", "csv", flagged("--csv", f"{{folder}}/{long}"))
    for name in (long, "~no-such-user/x.toml"):
        where = lambda run, folder, name=name: {"file": name}  # noqa: E731
        yield Attack(kind, f"a file named {name[:15]}", "sweep", where)
        yield Attack(kind, f"a file named {name[:15]}", "config", where)
    yield Attack(kind, "a folder as its file", "config", lambda run, folder: {"file": folder})


def channels():
    """Yield pictures of several channels of 16 bits."""
    deep = {
        "four channels of 49 million pixels": two("png", lambda n: deep_png(7000, 7000, 4, value=n), (7000, 7000)),
        "four channels of 65,535 pixels in a row": two("png", lambda n: deep_png(2, 65_535, 4, value=n), (2, 65_535)),
        "a claim of 65,535 channels": two("tif", lambda _: tiff(8, 8).replace(*SAMPLES), (8, 8)),
        "three channels": pictures(*((f"{n}.png", deep_png(24, 32, 3)) for n in range(4)), size=(24, 32)),
        "eight bits": pictures(*((f"{n}.png", deep_png(24, 32, 4, 8)) for n in range(4)), size=(24, 32)),
    }
    for name, made in deep.items():
        yield Attack("pictures", name, "channels", made, (0, 2) if name.startswith("four") else (2,))


def two(suffix, make, size):
    """Make a dataset of two different images, of which one is for validation."""
    return pictures(*((f"{n}.{suffix}", partial(make, n)) for n in (1, 2)), size=size)


assert shutil.which("unshare"), "attacks by a full disk mount one in a namespace of their own"
