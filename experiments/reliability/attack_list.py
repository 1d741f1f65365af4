"""The attacks of `attacks.py`: at least three for each kind and each command that the kind concerns."""

import os
import shutil
import struct
from functools import partial

from attack_commands import Attack
from attack_inputs import (
    a_socket,
    both,
    calling,
    custom_code,
    endless,
    evaluation,
    file,
    flagged,
    gone,
    line,
    link_to_victim,
    measured,
    meta,
    metrics,
    not_finite,
    replaced,
    sealed,
    setting,
    sparse,
    text,
)
from attack_pictures import (
    chunk,
    in_data,
    in_sample,
    mode,
    photos,
    pictures,
    png,
    scan_bomb,
    tiff,
    webp,
)

READERS = ("train", "evaluate", "predict", "export", "report")
OTHER_READERS = ("init-run", "measure", "lower")  # of a run, too
OF_DATA = ("doctor", "begin", "check")
LINKED = (
    *("checkpoints/x", "lock", "checkpoints/best", "metrics.jsonl"),
    *("config.toml", "samples", "evaluations", "export"),
)
KEYS = {"coordinator": '"192.0.2.1:80"', "process_id": "1", "num_processes": "2", "run": '"x"', "resume": "true"}
DEEP = {"brackets": "x = " + "[" * 30_000, "dots": "a" + ".a" * 30_000 + " = 1", "tables": "x = " + "{a=" * 15_000}
STRANGE = {
    "a list": sealed(lambda place: (place / "meta.json").write_text("[]")),
    "deep": sealed(lambda place: (place / "meta.json").write_text("[" * 200_000)),
    "classes with escapes": meta(classes=["\x1b]0;x\x07", *"abcdefghij"]),
    "a million classes": meta(classes=[str(number) for number in range(1_000_000)]),
    "no state": sealed(lambda place: shutil.rmtree(place / "state")),
    "foreign state": sealed(lambda place: (place / "state" / "_METADATA").write_text("{}")),
    "statistics that are not finite": sealed(not_finite),
}
NAMES = {  # of files, with what a terminal obeys
    "an escape": os.fsdecode(b"\x1b[2J\xff.png"),
    "a bell and a right-to-left mark": "\x07\u202egnp.png",
    "an escape in a sequence name": "\x1b]0;x\x07_000001.png",
}


def attacks() -> list[Attack]:
    """Return all attacks."""
    return [
        *links(),
        *experiments(),
        *keys(),
        *bounds(),
        *checkpoints(),
        *control_characters(),
        *overwriting(),
        *exit_codes(),
        *custom_modules(),
        *small(),
        *images(),  # these take long
    ]


def links():
    """Yield links inside a run."""
    for command in READERS:
        for name in LINKED:
            yield Attack("links", f"{name} is a link", command, replaced(name, link_to_victim))
    for command in OTHER_READERS:
        for name in ("checkpoints/best", "config.toml", "checkpoints"):
            yield Attack("links", f"{name} is a link", command, replaced(name, link_to_victim))


def experiments():
    """Yield runs whose config and checkpoints differ."""
    for command in ("train", "evaluate", "predict", "export", *OTHER_READERS):
        for name, value in (("seed", "7"), ("width", "0.125"), ("pooling", '"ceil"')):
            yield Attack("one experiment", f"{name} edited", command, setting(name, value))
    yield Attack("one experiment", "checkpoints are gone", "train", gone(), (3,))
    yield Attack("one experiment", "checkpoints and outcome are gone", "train", gone(steps=9), (3,))


def keys():
    """Yield configs that set fields that only a command line may set."""
    for command in ("train", "evaluate", "predict", "export"):
        for name, value in KEYS.items():
            yield Attack("keys of one start", name, command, line(f"{name} = {value}"))
    for command in OTHER_READERS:
        for name in ("coordinator", "process_id", "run"):
            yield Attack("keys of one start", name, command, line(f"{name} = {KEYS[name]}"))


def bounds():
    """Yield paths that are huge or endless files, or not regular files."""
    for command in READERS:
        report = command == "report"
        for name in ("config.toml", "metrics.jsonl", "checkpoints/last.json"):
            for kind, make in (("a pipe", os.mkfifo), ("a socket", a_socket), ("3 GB", sparse)):
                codes = (0, 2) if report else (2,) if name == "config.toml" or kind != "3 GB" else (0, 2, 3)
                yield Attack("bounds", f"{name} is {kind}", command, replaced(name, make), codes)
        for name, content in DEEP.items():
            made = replaced("config.toml", text(content))
            yield Attack("bounds", f"config of deep {name}", command, made, (0,) if report else (2,))
    for command in OTHER_READERS:
        for kind, make in (("a pipe", os.mkfifo), ("3 GB", sparse), ("deep", text(DEEP["dots"]))):
            yield Attack("bounds", f"config.toml is {kind}", command, replaced("config.toml", make))
    for command in ("evaluate", "predict", "export", "measure"):
        for size in ("[16384, 16384]", "[8, 1000000]", "[0, 32]"):
            edited = setting("image_size", size)
            yield Attack("bounds", f"image_size is {size}", command, edited, (2, 7))
    for command in OF_DATA:
        for name, kind, make in (
            ("images/1.png", "a pipe", os.mkfifo),
            ("labels/1.png", "/dev/zero", endless),
            ("classes.toml", "deep", text(DEEP["dots"])),
            ("codes.txt", "a million classes", text("\n".join(map(str, range(1_000_000))))),
            ("images/1.png", "3 GB", sparse),
        ):
            yield Attack("bounds", f"{name} is {kind}", command, in_data(name, make))
    for name, kind, make in (
        ("w.safetensors", "3 GB", sparse),
        ("w.pth", "a pipe", os.mkfifo),
        ("w.npz", "/dev/zero", endless),
        ("w.h5", "text", text("x" * 1000)),
        ("w.onnx", "3 GB", sparse),
    ):
        yield Attack("bounds", f"{name} is {kind}", "init", file(name, make))
    for kind, make in (("3 GB", sparse), ("a pipe", os.mkfifo), ("/dev/zero", endless)):
        yield Attack("bounds", f"w.caffemodel is {kind}", "convert", file("w.caffemodel", make))
        yield Attack("bounds", f"the measurements are {kind}", "compare", file("measured.json", make))
        yield Attack("bounds", f"train.txt is {kind}", "prepare", in_sample("train.txt", make))


def images():
    """Yield pictures that take memory or time: within the limits, then beyond them."""

    def gray(*sizes):
        return [(f"{n}.png", partial(png, *size, halves=(n, 99))) for n, size in enumerate(sizes)]

    within = {
        "a panorama and a tower": gray((700, 65_000), (65_000, 700)),
        "lines and a panorama": gray((2, 65_535), (65_535, 2), (762, 65_535)),
        "two squares of 49 million pixels": gray((7000, 7000), (7000, 7001)),
    }
    small, large = (struct.pack(">II", size, size) for size in (8, 20_000))
    tile, tags = [(322, 3, 1, 30_000), (323, 3, 1, 60_000)], [(1000 + n, 7, 10**6, 8) for n in range(900)]
    beyond = {
        "a row of 50 million pixels": ("row.png", partial(png, 1, 50_000_000)),
        "a million chunks": ("chunks.png", lambda: png(8, 8, chunk(b"teXt", b"") * 1_000_000)),
        "a claim of 400 million pixels": ("big.png", png(8, 8).replace(small, large, 1)),
        "a TIFF with a tile of 1.8 billion pixels": ("tile.tif", tiff(8, 8, *tile)),
        "a TIFF of overlapping tags": ("tags.tif", tiff(8, 8, *tags) + bytes(10**6)),
        "a WebP of 33 million pixels": ("big.webp", partial(webp, 2000, 16_383)),
    }
    for command in ("predict", *OF_DATA):
        if command != "check":  # which reads pictures as training does
            for name, made in within.items():
                yield Attack("pictures", name, command, pictures(*made), (0,))
        for name, made in beyond.items():
            yield Attack("pictures", name, command, pictures(made, size=(8, 8)))
        yield Attack("pictures", "a thousand scans", command, in_data("images/1.jpg", scan_bomb))


def checkpoints():
    """Yield checkpoints with valid checksums and strange content."""
    for command in ("train", "evaluate", "predict", "export"):
        for name, change in STRANGE.items():
            yield Attack("strange checkpoints", name, command, change, (3,))
    for command in OTHER_READERS:
        for name in ("a list", "deep", "foreign state"):
            codes = (0, 3) if (command, name) == ("lower", "foreign state") else (3,)  # which reads no state
            yield Attack("strange checkpoints", name, command, STRANGE[name], codes)


def control_characters():
    """Yield names with control characters."""
    kind, escape = "control characters", '"\\u001b[2J\\u202e"'
    for command in ("train", "evaluate", "predict", "export"):
        yield Attack(kind, "a key of the config", command, line(f"{escape} = 1"))
        yield Attack(kind, "an invalid value in the config", command, setting("pooling", escape))
        codes = (0, 2) if command == "predict" else (2,)
        yield Attack(kind, "the dataset in the config", command, setting("data", escape), codes)
    for name, evil in NAMES.items():
        report = ["--json", "{folder}/report.json"]
        yield Attack(kind, f"photograph: {name}", "predict", both(photos(evil, png(32, 32)), flagged(*report)), (0,))
        yield Attack(kind, f"broken photograph: {name}", "predict", photos(evil, b"x"))
        for command in OF_DATA:
            made = in_data(f"images/{evil}", lambda path: path.write_bytes(png(32, 32)))
            yield Attack(kind, f"image without label: {name}", command, made)
    for command in OF_DATA:
        yield Attack(kind, "class names", command, in_data("codes.txt", text("\x1b[2Ja\nb")))
    yield Attack(kind, "class names of an evaluation", "report", evaluation(["\x1b[2Ja\u202e", "b"]), (0,))
    many = evaluation(list(map(str, range(1_000_000))))
    yield Attack(kind, "a million class names of an evaluation", "report", many, (0,))
    yield Attack(kind, "names in metrics", "report", metrics("\x1b[2J\u202e"), (0,))
    yield Attack(kind, "a key of the config", "report", line(f"{escape} = 1"), (0,))
    for name in ("name", "device"):
        yield Attack(kind, f"{name} in measurements", "compare", measured(**{name: "\x1b[2J\u202e"}), (0, 2))
    columns = {"\x1b[2J": {"fails": "\x1b[2J\x07"}}
    yield Attack(kind, "precisions in measurements", "compare", measured(precisions=columns), (0, 2))


def overwriting():
    """Yield output flags that name another user's files or files of the run."""
    kind, measure = "overwriting", measured()
    mine = ("{victim}/thesis.json", "{victim}/notebook.json")
    for command in ("evaluate", "export", "report", "doctor", "predict", "measure", "check", "benchmark"):
        for where in (*mine, "{run}/result.json"):
            yield Attack(kind, f"--json {where}", command, flagged("--json", where))
        yield Attack(kind, "--json in a checkpoint", command, flagged("--json", "{run}/checkpoints/newest/3/x.json"))
    for where in ("{victim}/photo.png", "{run}/first_batch.png", "{victim}/thesis.txt"):
        yield Attack(kind, f"--picture {where}", "doctor", flagged("--picture", where))
        yield Attack(kind, f"--out {where}", "report", flagged("--out", where))
    for where in (*mine, "{victim}/page.md"):
        for flag in ("--out", "--json"):
            made = both(measure, flagged(flag, where, "--overwrite"))
            yield Attack(kind, f"{flag} {where} --overwrite", "compare", made)
    yield Attack(kind, "--json is the input", "compare", both(measure, flagged("--json", "{folder}/measured.json")))
    for where in ("{victim}/weights.npz", "{victim}/thesis.txt", "{run}/config.toml"):
        yield Attack(kind, f"--out {where}", "prepare-vgg", flagged("--out", where))
    for where in ("{victim}", "{run}", "{victim}/thesis.txt"):
        yield Attack(kind, f"--out {where}", "lower", flagged("--out", where))
        yield Attack(kind, f"--out {where} --overwrite", "export", flagged("--out", where, "--overwrite"), (0, 2))
        codes = (0, 2) if where == "{run}" else (2,)  # predictions beside the files of the run
        yield Attack(kind, f"--out {where}", "predict", flagged("--out", where), codes)
        yield Attack(kind, f"--run {where}", "begin", flagged("--run", where))
        codes = (0, 2) if where == "{run}" else (2,)
        yield Attack(kind, f"--pictures {where}", "evaluate", flagged("--pictures", where), codes)
    yield Attack(kind, "--pictures of the run", "evaluate", flagged("--pictures", "{run}/samples"), (0, 2))


def exit_codes():
    """Yield limits of the machine."""
    kind, long = "exit codes", "n" * 300
    for command in (*READERS, "doctor", "begin"):
        yield Attack(kind, "ulimit -n 20", command, calling(limit="-n 20"))
        yield Attack(kind, "ulimit -v 1500000", command, calling(limit="-v 1500000"))
        begun = both(in_data("images/x.txt", text("")), calling(stderr="/dev/full"))
        full = begun if command == "begin" else calling(stderr="/dev/full")
        yield Attack(kind, "2>/dev/full", command, full, (0, 2))
    for command in ("train", "evaluate", "predict", "export"):
        codes = (0,) if command == "export" else (2,)  # export always runs on the CPU
        yield Attack(kind, "a GPU that is absent", command, calling(env={"JAX_PLATFORMS": "cuda"}), codes)
    for command in ("evaluate", "export", "report", "doctor", "predict"):
        yield Attack(kind, "a name of 300 letters", command, flagged("--json", f"{{folder}}/{long}"))
    for command in ("check", "benchmark", "convert"):
        yield Attack(kind, "ulimit -n 20", command, calling(limit="-n 20"))
        yield Attack(kind, "ulimit -v 1500000", command, calling(limit="-v 1500000"))
        flag = "--run" if command == "convert" else "--json"
        yield Attack(kind, "a name of 300 letters", command, flagged(flag, f"{{folder}}/{long}"))


def custom_modules():
    """Yield configs that name a module next to the run that writes a file if imported."""
    for command in (*READERS, "init-run", "measure", "lower"):
        codes = (0, 2) if command == "report" else (2,)
        yield Attack("own code", "a network", command, custom_code(name="network", value='"evil:Network"'), codes)
        yield Attack(
            "own code", "a file as an optimizer", command, custom_code(name="optimizer", value='"evil.py"'), codes
        )
        yield Attack("own code", "a hook", command, custom_code('hook = "evil:hook"'), codes)


def small():
    """Yield other attacks."""
    for command in OF_DATA:
        for name, where, make in (
            ("a transparent palette in an image", "images/1.png", mode("P", transparency=0)),
            ("a transparent gray in an image", "images/1.png", mode("L", transparency=0)),
            ("a transparent color in a label", "labels/1.png", mode("RGB", transparency=(0, 0, 0))),
            ("half-transparent pixels in a label", "labels/1.png", mode("RGBA")),
        ):
            yield Attack("small", name, command, in_data(where, make))
        million = in_data("codes.txt", text("a " * 1_000_000))
        yield Attack("small", "a million class names in one line", command, million)
    for name in ("saved-model", "stablehlo", "safetensors"):
        yield Attack("small", f"{name} leaves no file elsewhere", "export", flagged("--format", name), (0,))
