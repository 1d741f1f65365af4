"""Read damaged files and report every outcome other than success or the documented exception.

    python tests/fuzz_readers.py --reader h5 --inputs 100000 --seed 0 --seconds 600 --keep findings

prints one line of JSON. `--reader all` runs all readers. An input that kills the process (a crash in a C library),
takes over five seconds, causes a warning or takes a hundred megabytes of memory is also a finding.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import fuzz_inputs as inputs
import weight_files

from segnet_jax.system.errors import UserError

SECONDS = 5.0
PICTURE = 500  # megabytes of one of 50 million pixels, decoded and converted
OWN_PROCESS = {"seconds": 65.0, "quick": 10}  # where a separate, limited process is started for each input
OWN_FAULT = 70


class Reader(NamedTuple):
    """A fuzz target: how to make inputs, the function that reads them, and the exceptions it may raise."""

    seeds: Callable[[], list[bytes]]
    make: Callable
    open: Callable  # a folder -> (bytes -> None)
    documented: type[Exception] = UserError
    megabytes: int = 100  # limit of one step; exceeding it is a finding
    seconds: float = SECONDS  # limit of one input; exceeding it is a finding
    quick: int = 100  # inputs of the quick test


class TookTooLong(BaseException):
    pass


# what is read


def _weights(folder):
    from segnet_jax.weights.load import read_vgg

    def read(data):
        (folder / "weights").write_bytes(data)
        read_vgg(folder / "weights", "vgg16")

    return read


def _segnet(folder):
    from segnet_jax.weights.load import read_caffe_segnet

    def read(data):
        (folder / "weights").write_bytes(data)
        read_caffe_segnet(folder / "weights")

    return read


def _weights_of(name, make, **options):
    return Reader(lambda: inputs.weight_seeds()[name], make, _weights, **options)


def _pickle(folder):
    import io

    from segnet_jax.weights.containers.pickled import read_pickle

    return lambda data: read_pickle(io.BytesIO(data))


def _onnx(folder):
    """Read a graph and its preprocessing."""
    from segnet_jax.nn.preprocessing import TORCH
    from segnet_jax.weights.load import read_vgg

    def read(data):
        (folder / "weights").write_bytes(data)
        read_vgg(folder / "weights", "vgg16", TORCH)

    return read


def _protobuf(folder):
    from segnet_jax.weights.containers.onnx_graph import read_graph
    from segnet_jax.weights.formats.caffe import read_layers

    def read(data):
        (folder / "message").write_bytes(data)
        for tensors in (
            lambda: [blob for layer in read_layers(folder / "message") for blob in layer.blobs],
            lambda: read_graph(folder / "message").constants.values(),
        ):
            with contextlib.suppress(ValueError):
                for tensor in tensors():
                    with contextlib.suppress(ValueError):
                        tensor.read()

    return read


def _hdf5(folder):
    import io

    from segnet_jax.weights.containers.hdf5 import read_arrays

    def read(data):
        for array in read_arrays(io.BytesIO(data)).values():
            array.read()

    return read


def _image(folder):
    from segnet_jax.data.images.decode import read_image

    return lambda data: read_image(data, "image")


def _label(folder):
    from segnet_jax.data.label_files.decode_labels import read_label

    return lambda data: read_label(data, "label", 11, void=11)


def _color_label(folder):
    from segnet_jax.data.label_files.decode_labels import read_color_label
    from segnet_jax.data.labels.classes import CAMVID_ORIGINAL_COLORS

    return lambda data: read_color_label(data, "label", CAMVID_ORIGINAL_COLORS)


def _list(folder):
    import numpy as np
    from PIL import Image

    from segnet_jax.data.layouts.camvid import tutorial

    for index in range(3):
        Image.fromarray(np.full((6, 8, 3), index, np.uint8)).save(folder / f"{index}.png")
        Image.fromarray(np.full((6, 8), index, np.uint8)).save(folder / f"{index}_L.png")

    def read(data):
        (folder / "train.txt").write_bytes(data)
        tutorial(folder)

    return read


FRAMES = ("0001TP_006690", "0016E5_00901")


def _archive(folder):
    from segnet_jax.data.camvid.archives import scan_labels

    def read(data):
        (folder / "labels.zip").write_bytes(data)
        scan_labels(folder / "labels.zip", FRAMES)

    return read


def _archive_seeds():
    import zipfile

    label = inputs.picture_seeds()[2]
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return [inputs.zipped([(f"{frame}_L.png", label, method) for frame in FRAMES]) for method in methods]


def _config(folder):
    from segnet_jax.config.fields import Config
    from segnet_jax.config.files import read_config

    def read(data):
        (folder / "config.toml").write_bytes(data)
        read_config(folder / "config.toml", Config())

    return read


def _config_seeds():
    from segnet_jax.config.fields import Config

    return [Config().to_toml().encode(), b'data = "x"\nimage_size = [12, 16]\nlearning_rate = 1e-3\nflip = true\n']


def _metrics(folder):
    from segnet_jax.reporting.metrics_log import read_metrics

    def read(data):
        (folder / "metrics.jsonl").write_bytes(data)
        for row in read_metrics(folder / "metrics.jsonl"):
            assert isinstance(row["step"], int), f"step is {type(row['step']).__name__}"

    return read


_METRICS = b'{"kind": "train", "step": 3, "loss": 1.5}\n{"kind": "val", "step": 3, "iou": {"Sky": null}, "miou": 0.5}\n'


def _run(folder):
    from segnet_jax.config.files import read_run
    from segnet_jax.training.experiment_check import overrides

    def read(data):
        config, _, changes = data.partition(b"\0changes\0")
        (folder / "config.toml").write_bytes(config)
        (folder / "overrides.json").write_bytes(changes or b"[]")
        read_run(folder)
        overrides(folder)

    return read


def _run_seeds():
    changes = b'[{"step": 3, "changes": {"momentum": {"old": 0.9, "new": 0.8}}}]'
    return [config + b"\0changes\0" + changes for config in _config_seeds()]


def _stored_labels(folder):
    from segnet_jax.runs.run_folder import LABELS_FILE, labels_of

    def read(data):
        (folder / LABELS_FILE).write_bytes(data)
        labels_of(folder)

    return read


def _stored_labels_seeds():
    from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelRule, StoredLabels

    rule = LabelRule(11, TUTORIAL.ids, (((1, 2, 3), 0), ((0, 0, 0), 255)), ((255, 1),), 1, "ignore", 0, ("palette",))
    return [json.dumps(StoredLabels(TUTORIAL.classes, rule).as_json()).encode()]


def _counts(folder):
    from segnet_jax.data.camvid.prepared import full_size_counts

    def read(data):
        (folder / "full_size_counts.json").write_bytes(data)
        full_size_counts(folder)

    return read


def _class_table(name):
    def opened(folder):
        from segnet_jax.data.label_files.class_table_files import read_class_table

        def read(data):
            (folder / name).write_bytes(data)
            read_class_table(folder / name)

        return read

    return opened


def _own_folder(folder):
    import numpy as np
    from PIL import Image

    from segnet_jax.data.labels.read_options import DEFAULTS
    from segnet_jax.data.layouts import folder as own
    from segnet_jax.data.layouts.pairs import open_pairs

    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for index in range(3):
        Image.fromarray(np.full((6, 8, 3), index, np.uint8)).save(folder / f"images/{index}.png")
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3).save(folder / f"labels/{index}.png")

    def read(data):
        (folder / "val.txt").write_bytes(data)
        open_pairs(own.find(folder, DEFAULTS), folder, DEFAULTS)

    return read


_TABLES = {
    "classes.toml": b'classes = [{ name = "a", id = [1, 2], color = [1, 2, 3] }, { name = "b" }]\nvoid = [255]\n',
    "labelmap.txt": b"# label:color_rgb:parts:actions\na:1,2,3::\nvoid:0,0,0:x:y\n",
    "label_colors.txt": b"64 128 64\tAnimal\r\n192 0 128\tArch way\n",
    "codes.txt": b"Animal\nVoid\nbig car\n",
    "class_dict.csv": b"name,r,g,b\nAnimal,64,128,64\nVoid,0,0,0\n",
    "classes.txt": b"0: Animal\n1: big car\n",
    "obj_class_to_machine_color.json": b'{"Animal": [1, 1, 1], "car": [2, 2, 2]}',
    "meta.json": b'{"classes": [{"title": "Animal", "shape": "bitmap", "color": "#FF0000"}]}',
    "config.json": b'{"labels": [{"name": "a--b", "readable": "B", "evaluate": true, "color": [1, 2, 3]}]}',
}


READERS = {
    "torch-zip": _weights_of("torch-zip", inputs.torch_zip),
    "torch-legacy": _weights_of("torch-legacy", inputs.pickles),
    "safetensors": _weights_of("safetensors", inputs.safetensors),
    "npz": _weights_of("npz", inputs.npz),
    "h5": _weights_of("h5", inputs.raw, **OWN_PROCESS),
    "keras-3": _weights_of("keras-3", inputs.keras3, **OWN_PROCESS),
    "onnx": Reader(lambda: inputs.weight_seeds()["onnx"], inputs.onnx, _onnx),
    "caffe": _weights_of("caffe", inputs.raw),
    "caffe-segnet": Reader(inputs.segnet_seeds, inputs.raw, _segnet),
    "pickle": Reader(inputs.pickle_seeds, inputs.pickles, _pickle, ValueError),
    "protobuf": Reader(
        lambda: inputs.weight_seeds()["caffe"] + inputs.weight_seeds()["onnx"], inputs.raw, _protobuf, ValueError
    ),
    "hdf5": Reader(lambda: inputs.weight_seeds()["h5"], inputs.raw, _hdf5, ValueError, **OWN_PROCESS),
    "image": Reader(inputs.picture_seeds, inputs.png, _image, megabytes=PICTURE),
    "other-image": Reader(inputs.other_picture_seeds, inputs.raw, _image, megabytes=PICTURE),
    "other-label": Reader(inputs.other_picture_seeds, inputs.raw, _label, megabytes=PICTURE),
    "label": Reader(inputs.picture_seeds, inputs.png, _label, megabytes=PICTURE),
    "color-label": Reader(inputs.picture_seeds, inputs.png, _color_label, megabytes=PICTURE),
    "list": Reader(lambda: [b"0.png 0_L.png\n/a/1.png /a/1_L.png\r\n2.png\t2_L.png"], inputs.text, _list),
    "own-folder": Reader(lambda: [b"1\nimages/2.png\r\n", b"/a/b/images/1.png"], inputs.text, _own_folder),
    **{name: Reader(lambda seed=seed: [seed], inputs.text, _class_table(name)) for name, seed in _TABLES.items()},
    "archive": Reader(_archive_seeds, inputs.zipped_pictures, _archive, megabytes=PICTURE),
    "config": Reader(_config_seeds, inputs.text, _config),
    "metrics": Reader(lambda: [_METRICS], inputs.text, _metrics),
    "stored-labels": Reader(_stored_labels_seeds, inputs.text, _stored_labels),
    "run": Reader(_run_seeds, inputs.text, _run),
    "counts": Reader(
        lambda: [b'{"frames": {"0001TP_006690": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}}'], inputs.text, _counts
    ),
}


# the run


def generated(name: str, seed: int, index: int, seeds: list[bytes]) -> bytes:
    """Return the input at an index; one in twenty is noise."""
    random = Random(f"{name} {seed} {index}")
    if random.random() < 0.05:
        return inputs.noise(random, random.choice(seeds))
    return READERS[name].make(random, seeds, seeds)


def outcome(read: Callable[[bytes], None], data: bytes, reader: Reader) -> str:
    """Read one input; return "accepted", "refused", or a description and location of any other outcome."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, reader.seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(data)
        outcome = "accepted"
    except reader.documented as error:
        outcome = (
            "refused"
            if "\n" not in str(error) or len(getattr(error, "faults", "")) > 1
            else "reported in several lines"
        )
    except (Exception, TookTooLong) as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "fuzz_readers" not in frame.filename]
        places = {"".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[-1:]): None}
        inner = [frame for frame in ours if "segnet_jax" in frame.filename]
        places |= {f"{Path(frame.filename).name}:{frame.lineno}": None for frame in inner[-1:]}
        outcome = f"{type(error).__name__} at {' from '.join(places)}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return f"memory: {grown:.0f} MB more" if grown > reader.megabytes else outcome


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Raise TookTooLong if an input takes too long."""

    def stop(*_):
        raise TookTooLong("took too long")

    old = signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, old)


def read_many(name: str, seed: int, indices: range, seconds: float, folder: Path, note=lambda index, data: None):
    """Yield (index, input, outcome) until the time is up."""
    reader, end = READERS[name], time.monotonic() + seconds
    seeds = reader.seeds()
    read = reader.open(folder)
    with timed():
        for data in seeds:  # a seed may be of a kind that is refused, but must not break the reader
            assert outcome(read, data, reader) in ("accepted", "refused")
        for index in indices:
            if time.monotonic() > end:
                return
            data = generated(name, seed, index, seeds)
            note(index, data)
            yield index, data, outcome(read, data, reader)


def fuzz(name: str, seed: int, num_inputs: int, seconds: float, keep: Path | None) -> dict:
    """Read many inputs in child processes; if an input kills one, a new process continues after that input."""
    start, index = time.monotonic(), 0
    counts, findings = {"accepted": 0, "refused": 0}, {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as text:
        folder = Path(text)
        while index < num_inputs and time.monotonic() - start < seconds:
            child = os.fork()
            if not child:
                left = seconds - (time.monotonic() - start)
                try:
                    _child(name, seed, range(index, num_inputs), left, folder)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(OWN_FAULT)
            _, status = os.waitpid(child, 0)
            if status == OWN_FAULT << 8:
                sys.exit(f"fuzzing {name} failed by a fault of its own")
            report = [json.loads(line) for line in (folder / "report").read_text().splitlines()]
            (folder / "report").unlink()
            for each in report:
                if each["outcome"] in counts:
                    counts[each["outcome"]] += each["count"]
                else:
                    _keep(findings, each["outcome"], each["index"], bytes.fromhex(each["input"]), keep, name)
            index = int((folder / "index").read_bytes()) + 1
            if status:
                _keep(
                    findings,
                    f"died of signal {status & 127} (status {status})",
                    index - 1,
                    (folder / "input").read_bytes(),
                    keep,
                    name,
                )
            else:
                break
    taken = time.monotonic() - start
    return {"reader": name, "seed": seed, "inputs": index, "seconds": round(taken), **counts, "findings": findings}


def _child(name, seed, indices, seconds, folder) -> None:
    weight_files_small()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (folder / "work").mkdir(exist_ok=True)
    last = open(folder / "index", "wb", buffering=0)
    current = open(folder / "input", "wb", buffering=0)

    def note(index, data):
        os.pwrite(last.fileno(), b"%12d" % index, 0)
        os.ftruncate(current.fileno(), 0)
        os.pwrite(current.fileno(), data, 0)

    with open(folder / "report", "w", buffering=1) as report:
        for index, data, outcome in read_many(name, seed, indices, seconds, folder / "work", note):
            known = outcome in ("accepted", "refused")
            line = {"outcome": outcome, "count": 1, "index": index, "input": "" if known else data.hex()}
            report.write(json.dumps(line) + "\n")


def weight_files_small() -> None:
    """Shrink the VGGs of this process to a few channels."""
    from segnet_jax.nn.segnet import ENCODERS

    ENCODERS.update(vgg16=weight_files.SMALL16, vgg19=weight_files.SMALL19)


def _keep(findings, outcome, index, data, keep, name) -> None:
    place = outcome.split(": ")[0]
    seen = findings.setdefault(place, {"example": outcome, "count": 0, "first": index})
    seen["count"] += 1
    if keep and seen["count"] <= 3:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name}-{index}").write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=[*READERS, "all"], required=True)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that found something")
    options = parser.parse_args()
    for name in READERS if options.reader == "all" else [options.reader]:
        print(json.dumps(fuzz(name, options.seed, options.inputs, options.seconds, options.keep)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
