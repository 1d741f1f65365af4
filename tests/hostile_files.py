"""Malicious files, and a process that opens them as the commands do.

    python tests/hostile_files.py FOLDER

opens every file of the folder's `cases.json` and prints a line of JSON for each: exit code, output, seconds, and the
peak memory of the process so far in megabytes. If the payload of a file runs, it creates `FOLDER/canary`.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import stat
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import weight_files as files

SECONDS = 60
FRAMES = ("0001TP_006690", "0016E5_00901")
CASES = {}


def hostile(reader):
    """Register a function that makes malicious files in a folder: name -> bytes, or None for a file already written."""

    def mark(make):
        CASES[make.__name__] = (reader, make)
        return make

    return mark


def write_all(folder):
    """Write every file; return the cases as (name, reader, path)."""
    cases = []
    for group, (reader, make) in CASES.items():
        own = folder / group
        own.mkdir()
        for name, content in make(own, folder / "canary").items():
            path = own / name
            if content is not None:
                path.write_bytes(content)
            cases.append((f"{group}: {name}", reader, str(path)))
    (folder / "cases.json").write_text(json.dumps(cases))
    return cases


# bombs


def zeros(num_bytes):
    """Return a raw deflate stream of that many zeros, by repeating a compressed block of a million."""
    million = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = million.compress(bytes(1_000_000)) + million.flush(zlib.Z_FULL_FLUSH)
    return block * (num_bytes // 1_000_000) + b"\x03\x00"


def raw_zip(members):
    """Return a zip of (name, method, packed bytes, claimed size), without checking any of them."""
    body, directory = bytearray(), bytearray()
    for name, method, packed, size in members:
        name = name.encode()
        sizes = struct.pack("<HHQQ", 1, 16, size, len(packed))
        fields = struct.pack("<HHHHHIIIHH", 45, 0, method, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(sizes))
        directory += b"PK\1\2\x2d\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name + sizes
        body += b"PK\3\4" + fields + name + sizes + packed
    count = min(len(members), 0xFFFF)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + end)


BOMB = 10_000_000_000


# pickles


def payloads(canary):
    """Return pickles that create the canary when Python loads them, by the opcode that executes the call."""
    command = f"touch {canary}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    touch = f"open({str(canary)!r}, 'w').close()".encode()
    code = b"X" + struct.pack("<I", len(touch)) + touch
    return {
        "reduce": b"\x80\x02cos\nsystem\n" + text + b"\x85R.",
        "eval": b"\x80\x02cbuiltins\nexec\n" + code + b"\x85R.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "inst": b"(S'" + command + b"'\nios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + text + b"o.",
        "newobj": b"\x80\x02csubprocess\nPopen\n](X\x02\0\0\0sh" + b"X\x02\0\0\0-c" + text + b"e\x85R.",
        # The state of a partial contains the function that it calls: BUILD replaces the harmless one.
        "build": b"\x80\x02cfunctools\npartial\ncbuiltins\nprint\n\x85R(cos\nsystem\n" + text + b"\x85}Ntb)R.",
    }


def runs(payload, canary):
    """Return whether Python's own unpickler runs a payload; remove the canary afterwards."""
    with contextlib.suppress(Exception):
        pickle.loads(payload)
    for _ in range(50):
        if canary.exists():
            canary.unlink()
            return True
        time.sleep(0.02)
    return False


def asleep(canary):
    """Return pickles that run only in applications that register a handler."""
    command = f"touch {canary}".encode()
    return {
        "ext1": b"\x80\x02\x82\x01.",
        "ext4": b"\x80\x02\x84\x01\0\0\0.",
        "persid": b"Pos.system('" + command + b"')\n.",
        "binpersid": b"\x80\x02(X\x07\0\0\0storagecos\nsystem\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ.",
    }


def in_torch_zip(content, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name}", data)
    return file.getvalue()


def in_torch_legacy(content, place=3):
    """Return a legacy torch file with one of its five pickles replaced by the content."""
    head = [
        pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
    ]
    head[place] = content
    return b"".join(head)


def tensor_of(num_items, name="features.0.weight", shape=None):
    """Return the pickle of a state with one tensor in a storage of that many numbers."""
    description = ("storage", files.STORAGES["float32"], "0", "cpu", num_items)
    stub = files.TensorStub(np.zeros(1, np.float32), description, files.REBUILD)
    stub.reduced = stub.reduced[0], (stub.reduced[1][0], 0, shape or (num_items,), (1,) * len(shape or (1,)))
    files.Pickler(buffer := io.BytesIO(), protocol=2).dump({name: stub})
    return buffer.getvalue()


@hostile("weights")
def torch_pickles(folder, canary):
    live = payloads(canary) | asleep(canary)
    made = {f"{name}.pth": in_torch_zip(content) for name, content in live.items()}
    made |= {f"{name}-legacy.pth": in_torch_legacy(content) for name, content in live.items()}
    made |= {f"{name}-bare.pth": content for name, content in live.items() if content[:1] == b"\x80"}
    return made | {"version-legacy.pth": in_torch_legacy(live["reduce"], place=1)}


@hostile("weights")
def torch_claims(folder, canary):
    return {
        "10^12 items.pth": in_torch_zip(tensor_of(10**12), **{"0": bytes(8)}),
        "10^12 items-legacy.pth": in_torch_legacy(tensor_of(10**12)),
        "bomb in the pickle.pth": raw_zip([("a/data.pkl", 8, zeros(BOMB), BOMB)]),
        "bomb in a storage.pth": raw_zip(
            [("a/data.pkl", 0, data := tensor_of(BOMB // 4), len(data)), ("a/data/0", 8, zeros(BOMB), BOMB)]
        ),
        "a million steps.pth": in_torch_zip(b"\x80\x02" + b"}" * 1_000_000 + b"."),
        "five million steps-legacy.pth": in_torch_legacy(b"\x80\x02" + b"}" * 5_000_000 + b"."),
        "nested.pth": in_torch_zip(b"\x80\x02)" + b"\x85" * 900_000 + b"."),
        "a million members.zip": raw_zip([("a/data.pkl", 0, b"", 0)] * 30_000),
        "lzma.pth": raw_zip([("a/data.pkl", 14, b"\x09\4\5\0\x5d\xff\xff\xff\xff", 100)]),
    }


# other weights


def _safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@hostile("weights")
def safetensors(folder, canary):
    def tensors(*spans, shape=(2,)):
        return {f"t{i}": {"dtype": "F32", "shape": shape, "data_offsets": span} for i, span in enumerate(spans)}

    return {
        "overlapping.safetensors": _safetensors(tensors((0, 8), (4, 12)), bytes(12)),
        "gap.safetensors": _safetensors(tensors((0, 8), (12, 20)), bytes(20)),
        "negative.safetensors": _safetensors(tensors((-8, 0)), bytes(8)),
        "backwards.safetensors": _safetensors(tensors((8, 0)), bytes(8)),
        "beyond.safetensors": _safetensors(tensors((0, 8 << 40), shape=(2 << 40,)), bytes(8)),
        "overflowing.safetensors": _safetensors(tensors((0, 8), shape=(1 << 62, 1 << 62)), bytes(8)),
        "header of 10^12 bytes.safetensors": (10**12).to_bytes(8, "little") + b"{" + bytes(100),
        "header of 100 MB.safetensors": _safetensors(b"{" + b" " * 100_000_000 + b"}"),
        "deep.safetensors": _safetensors(b'{"a":' + b"[" * 500_000),
        "twice.safetensors": _safetensors(b'{"t": {}, "t": {}}'),
    }


def npy(header, data=b"", length=None):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) if length is None else length) + header + data


@hostile("weights")
def numpy_archives(folder, canary):
    def archive(content):
        return zipped(("conv1_1/kernel.npy", content))

    np.savez(pickled := io.BytesIO(), **{"conv1_1/kernel": np.array([None, "object"], object)})
    payload = payloads(canary)["reduce"]
    head = npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")
    code = f"{{'descr': __import__('os').system('touch {canary}'), 'fortran_order': False, 'shape': (1,), }}\n".encode()
    claim = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }\n"
    bomb = npy(claim % (BOMB // 4))
    stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    packed = stored.compress(bomb) + stored.flush(zlib.Z_FULL_FLUSH) + zeros(BOMB)
    return {
        "objects.npz": pickled.getvalue(),
        "objects with code.npz": archive(head + payload),
        "code in the header.npz": archive(npy(code)),
        "nested header.npz": archive(npy(b"(" * 60_000)),
        "minuses.npz": archive(npy(b"-" * 9_000 + b"1\n")),
        "10^12 numbers.npz": archive(npy(claim % 10**12)),
        "structured.npz": archive(
            npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", bytes(4))
        ),
        "bomb.npz": raw_zip([("conv1_1/kernel.npy", 8, packed, BOMB + len(bomb))]),
        "bomb in the classifier.npz": raw_zip([("fc6/kernel.npy", 8, packed, BOMB + len(bomb))]),
    }


@hostile("weights")
def keras(folder, canary):
    import h5py

    small = files.random_vgg(files.SMALL16)
    whole = "block1_conv1/block1_conv1_W_1:0"

    def changed(name, change):
        files.write_keras(folder / name, small)
        with h5py.File(folder / name, "a") as file:
            change(file)

    def without(file):
        del file[whole]
        return file

    (folder / "secret").write_bytes(bytes(1000))
    files.write_keras(folder / "other", small)
    changed("link.h5", lambda file: without(file).__setitem__(whole, h5py.ExternalLink("other", whole)))
    changed(
        "external.h5",
        lambda file: without(file).create_dataset(whole, (3, 3, 3, 3), "f4", external=[("secret", 0, 324)]),
    )
    layout = h5py.VirtualLayout((3, 3, 3, 3), "f4")
    layout[...] = h5py.VirtualSource("other", whole, (3, 3, 3, 3))
    changed("virtual.h5", lambda file: without(file).create_virtual_dataset(whole, layout))
    changed("chunks.h5", lambda file: without(file).create_dataset(whole, (1 << 40,), "f4", chunks=(1 << 20,)))
    changed("filled.h5", lambda file: without(file).create_dataset(whole, (1 << 40,), "f4", fillvalue=1))
    changed("itself.h5", lambda file: file["block1_conv1"].__setitem__("again", file["/"]))

    def attributes(file):
        for index in range(300):
            without_limit = np.zeros(8000, "f8")
            file[f"block{index % 5 + 1}_conv1"].attrs[f"a{index}"] = without_limit
        del file[whole]

    changed("attributes.h5", attributes)
    changed("many.h5", lambda file: [file.create_group(f"g{index}") for index in range(30_000)])
    data = (folder / "other").read_bytes()
    tree, heap = data.index(b"TREE"), data.index(b"HEAP")
    lost = struct.pack("<Q", 1 << 62)
    endless = bytearray(data)
    endless[tree + 5], endless[tree + 32 : tree + 40] = 1, struct.pack("<Q", tree)  # a node that is its own child
    made = {
        "endless.h5": bytes(endless),
        "names beyond.h5": data[: heap + 24] + lost + data[heap + 32 :],
        "root beyond.h5": data[:64] + lost + data[72:],
        "version 3.h5": data[:8] + b"\3" + data[9:],
    }
    names = ("link", "external", "virtual", "chunks", "filled", "itself", "attributes", "many")
    return made | {f"{name}.h5": None for name in names}


@hostile("weights")
def caffe(folder, canary):
    head = files.message(1, b"net")
    blob = files.message(6, b"(" * 50_000_000)  # twenty-five million numbers of a field of one byte
    return {
        "groups.caffemodel": head + b"\x13" * 1_000_000,
        "beyond.caffemodel": head + b"\x12" + files.varint(1 << 62),
        "fields.caffemodel": head + files.message(2, b"\x08\x00" * 20_000_000),
        "blobs.caffemodel": head + files.message(2, b"\x32\x00" * 20_000_000),
        "dims.caffemodel": head
        + files.message(2, files.message(6, files.message(7, files.message(1, b"\1" * 30_000_000)))),
        "tags.caffemodel": head
        + files.message(2, files.message(6, (b"\x2d" + bytes(4) + b"\x35" + bytes(4)) * 3_000_000)),
        "numbers.caffemodel": head + files.message(2, files.message(4, b"conv1_1") + blob),
    }


@hostile("weights")
def keras_archives(folder, canary):
    """Return `.keras` archives that name classes for Keras to import in their config, or that are zip bombs."""
    config = {"module": "os", "class_name": "system", "config": {"command": f"touch {canary}"}}
    files.write_keras3(whole := io.BytesIO(), files.random_vgg(files.SMALL16))
    data, name = whole.getvalue(), "model.weights.h5"

    def archive(content):
        return zipped(("config.json", json.dumps(config)), ("metadata.json", "{}"), (name, content))

    return {
        "code in the config.keras": archive(data[:5000]),
        "bomb.keras": raw_zip([(name, 8, zeros(BOMB), BOMB)]),
        "claims.keras": raw_zip([(name, 0, data, BOMB)]),
        "escapes.keras": zipped(("../canary", b"x"), (name, b"\x89HDF")),
        "lzma.keras": raw_zip([(name, 14, b"\x09\4\5\0\x5d\xff\xff\xff\xff", 100)]),
        "no hdf5.keras": archive(b"a" * 100),
        "encrypted.keras": archive(data).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
    }


@hostile("weights")
def onnx(folder, canary):
    small = files.random_vgg(files.SMALL16)
    (folder / "secret").write_bytes(bytes(1000))
    message, integer, node = files.message, files.integer, files.onnx_node

    def external(location):
        net = files.OnnxVGG().vgg(small)
        entry = message(1, b"location") + message(2, location.encode())
        shape = b"".join(integer(1, size) for size in (3, 3, 3, 3))
        net.initializers[0] = shape + integer(2, 1) + message(8, b"tensor0") + message(13, entry) + integer(14, 1)
        return net.model()

    def graph(content):
        return integer(1, 8) + message(7, content)

    deep = b""
    for _ in range(3000):  # If nodes in the branches of If nodes
        deep = message(1, message(4, b"If") + message(5, message(1, b"then_branch") + message(6, deep)))
    folded = [node("Constant", [], "c0", value=np.float32([1]))]
    folded += [node("Identity", [f"c{index}"], f"c{index + 1}") for index in range(5000)]
    claims = integer(1, 1 << 40) + integer(1, 1 << 40) + integer(2, 1) + message(8, b"c0")
    growing = [node("Unsqueeze", [f"c{index}"], f"c{index + 1}", axes=[0]) for index in range(5000)]
    chain = [node("Identity" if index else "Cast", [f"m{index}"], f"m{index + 1}") for index in range(9000)]
    image = message(11, message(1, b"m0"))
    return {
        "secret.onnx": external("secret"),
        "passwd.onnx": external("/etc/passwd"),
        "device.onnx": external("/dev/zero"),
        "deep.onnx": graph(deep),
        "nodes.onnx": graph(b"\x0a\0" * 20_000_000),
        "initializers.onnx": graph(b"\x2a\0" * 20_000_000),
        "inputs.onnx": graph(b"\x5a\0" * 20_000_000),
        "operands.onnx": graph(message(1, b"\x0a\0" * 20_000_000)),
        "dims.onnx": graph(message(5, message(1, b"\1" * 30_000_000))),
        "unpacked dims.onnx": graph(message(5, b"\x08\1" * 20_000_000)),
        "axes.onnx": graph(message(1, message(5, message(8, b"\1" * 30_000_000)))),
        "groups.onnx": graph(b"\x0b" * 1_000_000),
        "beyond.onnx": integer(1, 8) + b"\x3a" + files.varint(1 << 62),
        "a long number.onnx": b"\x08" + b"\xff" * 1_000_000,
        "10^24 numbers.onnx": graph(message(5, claims + message(9, bytes(8)))),
        "10^24 numbers reshaped.onnx": graph(
            message(5, claims + integer(2, 16)) + b"".join(message(1, each) for each in growing) + image
        ),
        "folded.onnx": graph(b"".join(message(1, each) for each in folded) + image),
        "folded and used.onnx": files.onnx_model(
            [*folded, node("Conv", ["image", "c5000"], "m1", pads=[1, 1, 1, 1])],
        ),
        "a long chain.onnx": graph(b"".join(message(1, each) for each in chain) + image),
        "all branches.onnx": graph(message(1, node("Relu", ["m0"], "m1")) * 5000 + image),
        "inputs of a chain.onnx": files.onnx_model(chain[:2000], inputs=[f"m{index}" for index in range(2000)]),
        "code.onnx": graph(message(1, node("PyOp", ["m0"], "m1", domain="ai.onnx.contrib", module="os")) + image),
    }


# CamVid's archives


def zipped(*members):
    """Return a zip of (name or ZipInfo, data)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


@hostile("archive")
def zip_slips(folder, canary):
    link = zipfile.ZipInfo(f"{FRAMES[0]}_L.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    escapes = {
        "parent": "../canary",
        "inner parent": "a/../../canary",
        "absolute": str(canary),
        "drive": "C:\\canary",
        "backslash": "..\\canary",
        "network": "\\\\host\\share\\canary",
    }
    made = {f"{name}.zip": zipped((member, b"x")) for name, member in escapes.items()}
    return made | {
        "nul.zip": zipped(("canary@.png", b"x")).replace(b"canary@", b"canary\0"),
        "link.zip": zipped((link, b"/etc/passwd")),
        "twice.zip": raw_zip([(f"{FRAMES[0]}_L.png", 0, b"x", 1), (f"{FRAMES[0]}_L.png", 0, b"y", 1)]),
        "bomb.zip": raw_zip([(f"{FRAMES[0]}_L.png", 8, zeros(BOMB), BOMB)]),
        "bomb that claims little.zip": raw_zip([(f"{frame}_L.png", 8, zeros(BOMB), 1000) for frame in FRAMES]),
        "lzma.zip": raw_zip([(f"{FRAMES[0]}_L.png", 14, b"\x09\4\5\0\x5d\xff\xff\xff\xff", 100)]),
        "members.zip": raw_zip([(f"{index}", 0, b"", 0) for index in range(40_000)]),
        "no end.zip": raw_zip([("a", 0, b"x", 1)])[:-22]
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 4 << 28, 0, 0),
    }


# pictures


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def header(width, height, color_type=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))


def pixels(width, height, channels=1):
    return chunk(b"IDAT", zlib.compress(bytes(height * (1 + channels * width)), 9))


SMALL_PNG = png(header(8, 6, 2), pixels(8, 6, 3))
SMALL_LABEL = png(header(8, 6), chunk(b"IDAT", zlib.compress((bytes(6) + b"\1\1\1") * 6, 9)))  # of two classes


@hostile("picture")
def pictures(folder, canary):
    def jpeg(width, height):
        frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
        return b"\xff\xd8" + frame + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0?\0" + bytes(100) + b"\xff\xd9"

    bomb = zlib.compress(bytes(20_000), 9)
    starts_gs = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n(%pipe%touch {canary}) (w) file closefile\n".encode()
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>x</script></svg>'
    return {
        "400 Mpx.png": png(header(20_000, 20_000), *[chunk(b"IDAT", bomb)] * 500),
        "2^31 squared.png": png(header((1 << 31) - 1, (1 << 31) - 1), pixels(1, 1)),
        "no width.png": png(header(0, 6), pixels(1, 1)),
        "second header.png": png(header(12_000, 12_000), chunk(b"IDAT", zlib.compress(bytes(200))), header(8, 6)),
        "chunk of 4 GB.png": SMALL_PNG[:-12] + b"\xff\xff\xff\xffIDAT",
        "palette of nothing.png": png(header(8, 6, 3), pixels(8, 6)),
        "65535 squared.jpg": jpeg(65535, 65535),
        "no pixels.jpg": jpeg(0, 0),
        "no end of segments.jpg": b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000,
        "gif.png": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x08",
        "psd.png": b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">II", 300_000, 300_000) + b"\0\x08\0\3",
        "tiff.png": b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x100, 4, 1, 1 << 31) + bytes(4),
        "pdf.png": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch/F(touch)>>>>endobj\n",
        "eps.png": starts_gs,
        "svg.png": svg,
        "webp.png": b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(20),
        "bmp.png": b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, 0) + bytes(24),
        "fits.png": b"SIMPLE  =                    T".ljust(2880),
    }


# data folders


def data_folder(path, line="image.png label.png\n"):
    path.mkdir()
    (path / "image.png").write_bytes(SMALL_PNG)
    (path / "label.png").write_bytes(SMALL_LABEL)
    (path / "train.txt").write_bytes(line if isinstance(line, bytes) else line.encode())
    return path


@hostile("data")
def lists(folder, canary):
    lines = {
        "parents": "../../etc/passwd label.png\n",
        "parents inside": "a/../../other/image.png label.png\n",
        "absolute": "/etc/passwd label.png\n",
        "backslashes": "..\\..\\etc\\passwd label.png\n",
        "drive": "C:\\secret.png label.png\n",
        "newlines": "image.png label.png\0\n",
        "escapes": "\x1b[2J\x1b]0;x\x07image.png label.png\n",
        "direction": "\u202egnp.egami label.png\n",
        "script": "<script>alert(1)</script>.png label.png\n",
        "long": "a/" * 500_000 + "image.png label.png\n",
        "spaces": "image.png" + " a" * 500_000 + "\n",
        "many": b"a b\n" * 3_000_000,
        "large": b"image.png label.png\n" * 5_000_000,
        "not utf-8": b"\xff\xfei\0m\0",
        "empty": b"",
    }
    for name, line in lines.items():
        data_folder(folder / name, line)
    return dict.fromkeys(lines)


@hostile("data")
def odd_files(folder, canary):
    outside = folder / "outside"
    outside.mkdir()
    (outside / "image.png").write_bytes(SMALL_PNG)

    def instead(case, name, make):
        path = data_folder(folder / case) / name
        path.unlink(missing_ok=True)
        make(path)

    instead("link outside", "image.png", lambda path: path.symlink_to(outside / "image.png"))
    instead("link to a secret", "image.png", lambda path: path.symlink_to("/etc/passwd"))
    instead("loop", "image.png", lambda path: path.symlink_to("image.png"))
    instead("longer loop", "image.png", lambda path: ((path.with_name("b")).symlink_to(path), path.symlink_to("b")))
    instead("fifo", "image.png", os.mkfifo)
    instead("fifo of a label", "label.png", os.mkfifo)
    instead("fifo of a list", "train.txt", os.mkfifo)
    instead("fifo of another list", "val.txt", os.mkfifo)
    instead("zeros", "image.png", lambda path: path.symlink_to("/dev/zero"))
    instead("zeros of a list", "train.txt", lambda path: path.symlink_to("/dev/zero"))
    instead("terminal", "image.png", lambda path: path.symlink_to("/dev/tty"))
    instead("folder", "image.png", Path.mkdir)
    instead("folder of a list", "train.txt", Path.mkdir)
    instead("process", "image.png", lambda path: path.symlink_to("/proc/self/mem"))
    instead("sparse", "image.png", lambda path: (path.touch(), os.truncate(path, 1 << 40)))
    data_folder(folder / "folder outside", "inner/image.png label.png\n").joinpath("inner").symlink_to(outside)
    return {path.name: None for path in folder.iterdir() if path != outside}


@hostile("data")
def own_folders(folder, canary):
    """Write folders in the other layouts with links that lead outside, bombs, and oversized lists and class tables."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "image.png").write_bytes(SMALL_PNG)

    def make(name, images="images", labels="labels"):
        own = folder / name
        for part, content in ((images, SMALL_PNG), (labels, SMALL_LABEL)):
            (own / part).mkdir(parents=True)
            (own / part / "image.png").write_bytes(content)
        (own / "codes.txt").write_text("background\nb")
        return own

    for name, layout in (("own", ()), ("voc", ("JPEGImages", "SegmentationClass"))):
        images, labels = layout or ("images", "labels")
        link = make(f"{name} link to an image", *layout) / images / "image.png"
        link.unlink()
        link.symlink_to(outside / "image.png")
        link = make(f"{name} link to a label", *layout) / labels / "image.png"
        link.unlink()
        link.symlink_to("/etc/passwd")
        own = make(f"{name} folder that is a link", *layout)
        (own / images / "image.png").rename(outside / f"{name}.png")
        (own / images).rmdir()
        (own / images).symlink_to(outside)
        (make(f"{name} fifo", *layout) / images / "image.png").unlink()
        os.mkfifo(folder / f"{name} fifo" / images / "image.png")
        bomb = png(header(20000, 20000), chunk(b"IDAT", zeros(10_000_000)), chunk(b"IEND", b""))
        (make(f"{name} bomb", *layout) / labels / "image.png").write_bytes(bomb)
        (make(f"{name} escapes", *layout) / images / "\x1b[2J\n.png").write_bytes(SMALL_PNG)
    city = make("city", "leftImg8bit/train/a", "gtFine/train/a")
    (city / "leftImg8bit/train/a/image.png").rename(city / "leftImg8bit/train/a/x_leftImg8bit.png")
    (city / "gtFine/train/a/x_gtFine_labelIds.png").symlink_to("/etc/passwd")
    city = make("city labels behind a link", "leftImg8bit/train/a", "labels")
    (city / "leftImg8bit/train/a/image.png").rename(city / "leftImg8bit/train/a/x_leftImg8bit.png")
    (outside / "a").mkdir()
    (outside / "a/x_gtFine_labelIds.png").write_bytes(SMALL_LABEL)
    (city / "gtFine").mkdir()
    (city / "gtFine/train").symlink_to(outside)
    tables = {
        "deep": b"classes = " + b"[" * 50_000,
        "many": b"\n".join(b"%d" % number for number in range(20_000)),
        "large": b"#" * 5_000_000,
        "escapes": b'classes = [{ name = "\\u001b[2J" }]',
        "huge": b"classes = [{ name = 'a', id = 1" + b"0" * 5000 + b" }]",
        "not utf-8": b"\xff\xfe\0",
    }
    for name, content in tables.items():
        file = "codes.txt" if name == "many" else "classes.toml"
        (make(f"table {name}") / file).write_bytes(content)
    own = make("table that is a fifo")
    os.mkfifo(own / "classes.toml")
    (make("table that is a link") / "classes.toml").symlink_to("/etc/passwd")
    own = make("list that is a link")
    (own / "val.txt").symlink_to("/etc/passwd")
    lists = {"parents": b"../../etc/passwd", "escapes": b"\x1b[2Jimage", "large": b"image\n" * 5_000_000}
    for name, content in lists.items():
        (make(f"list {name}") / "val.txt").write_bytes(content)
    return dict.fromkeys(path.name for path in folder.iterdir() if path.name != "outside")


@hostile("data")
def samples(folder, canary):
    """Write prepared samples whose description names a module that TFDS would import."""
    module = folder / "hostile_module.py"
    module.write_text(f"open({str(canary)!r}, 'w').close()\nclass Text: pass\n")
    text = {"pythonClassName": "hostile_module.Text", "text": {}}
    inner = {"type": "hostile_module.Text", "content": "{}"}
    image = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"}

    def described(features):
        return json.dumps(features).encode()

    descriptions = {
        "foreign class": described({"featuresDict": {"features": {"name": text}}}),
        "foreign type": described(inner),
        "hidden": described(image | {"jsonFeature": {"json": json.dumps(inner)}}),
        "deep": b"[" * 500_000,
        "deeper": b'{"features":' * 50_000,
        "large": b" " * 50_000_000,
    }
    split = {
        "name": "train",
        "shardLengths": ["1"],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    elsewhere = split | {"filepathTemplate": "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    infos = {
        "record of 10^12 bytes": [split],  # at which TensorFlow crashes
        "records elsewhere": [elsewhere],
        "no splits": 17,
    }
    for name in (*descriptions, *infos):
        info = {"name": "camvid", "version": "1.0.0", "fileFormat": "tfrecord", "splits": infos.get(name, [split])}
        (folder / name).mkdir()
        (folder / name / "dataset_info.json").write_bytes(described(info))
        (folder / name / "features.json").write_bytes(descriptions.get(name, described({"featuresDict": {}})))
        # The length and its checksum, which TensorFlow checks, and nothing after them.
        shard = folder / name / "camvid-train.tfrecord-00000-of-00001"
        shard.write_bytes((10**12).to_bytes(8, "little") + b"J`\xfd\n" + bytes(100))
    return dict.fromkeys((*descriptions, *infos))


# special files in place of weights


@hostile("weights")
def no_files(folder, canary):
    os.mkfifo(folder / "fifo.pth")
    (folder / "zero.h5").symlink_to("/dev/zero")
    (folder / "loop.npz").symlink_to("loop.npz")
    (folder / "folder.safetensors").mkdir()
    (folder / "sparse.caffemodel").touch()
    os.truncate(folder / "sparse.caffemodel", 1 << 40)
    names = ("fifo.pth", "zero.h5", "loop.npz", "folder.safetensors", "sparse.caffemodel")
    return dict.fromkeys(names) | {"shell.pth": f"#!/bin/sh\ntouch {canary}\n".encode()}


# configs and runs


@hostile("config")
def configs(folder, canary):
    os.mkfifo(folder / "fifo.toml")
    (folder / "zero.toml").symlink_to("/dev/zero")
    return {
        "fifo.toml": None,
        "zero.toml": None,
        "100 MB.toml": b"# comment\n" * 10_000_000,
        "deep.toml": b"a = " + b"[" * 90_000,
        "deep table.toml": b"a = " + b"{a = " * 90_000,
        "dotted.toml": b"a." * 450_000 + b"a = 1",
        "deep value.toml": b"data = " + b"[" * 900 + b"]" * 900,
        "huge number.toml": b"seed = " + b"9" * 4000,
        "huger number.toml": b"seed = " + b"9" * 5000,
        "infinite.toml": b"learning_rate = inf",
        "nul.toml": b'data = "a\0b"',
        "code.toml": f"seed = __import__('os').system('touch {canary}')".encode(),
    }


@hostile("run")
def run_folders(folder, canary):
    contents = {
        "deep config": ("config.toml", b"a = " + b"[" * 90_000),
        "deep changes": ("overrides.json", b"[" * 500_000),
        "damaged changes": ("overrides.json", b'{"step": 1'),
        "other changes": ("overrides.json", b"17"),
        "deep metrics": ("metrics.jsonl", b'{"kind": ' + b"[" * 500_000 + b'\n{"kind": "val", "step": 1}\n'),
        "infinite step": ("metrics.jsonl", b'{"kind": "val", "step": Infinity}\n{"kind": "val", "step": 1}\n'),
        "step of words": ("metrics.jsonl", b'{"kind": "val", "step": "5"}\n{"kind": "val", "step": 1}\n'),
    }
    for name, (file, content) in contents.items():
        (folder / name).mkdir()
        (folder / name / "config.toml").write_bytes(b"seed = 1\n")
        (folder / name / file).write_bytes(content)
    return dict.fromkeys(contents)


# the process


def open_weights(path):
    from segnet_jax.nn.segnet import ENCODERS
    from segnet_jax.weights.load import read_vgg

    ENCODERS.update(vgg16=files.SMALL16, vgg19=files.SMALL19)
    read_vgg(path, "vgg16")


def open_archive(path):
    from segnet_jax.data.camvid.archives import open_archives, scan_labels

    scan_labels(path, FRAMES)
    open_archives(path, path, {"train": FRAMES}).splits["train"].read(0)


def open_picture(path):
    from segnet_jax.data.images.decode import read_image

    read_image(path, path.name)


def open_data(path):
    from segnet_jax.data.open_dataset import open_dataset

    sys.path.insert(0, str(path.parent))  # from where a command started there would import
    dataset = open_dataset(str(path), split_rule="tutorial", image_size=(6, 8), seed=0, num_train=1, num_val=1)
    dataset.splits["train"].read(0)


def open_config(path):
    from segnet_jax.config.fields import Config
    from segnet_jax.config.files import read_config

    read_config(path, Config())


def open_run(path):
    from segnet_jax.config.files import read_run
    from segnet_jax.reporting.metrics_log import read_metrics
    from segnet_jax.training.experiment_check import overrides

    read_run(path)
    overrides(path)
    if (path / "metrics.jsonl").exists():
        for row in read_metrics(path / "metrics.jsonl"):
            assert type(row["step"]) is int


READERS = {
    "weights": open_weights,
    "archive": open_archive,
    "picture": open_picture,
    "data": open_data,
    "config": open_config,
    "run": open_run,
}


class TookTooLong(BaseException):
    pass


def open_as_a_command(reader, path):
    """Return the exit code and the text printed to standard error."""
    from segnet_jax.system.command import run_command

    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            run_command(lambda: READERS[reader](path))
        except SystemExit as exit_:
            return exit_.code, printed.getvalue()
        except (Exception, TookTooLong) as error:
            return type(error).__name__, f"{printed.getvalue()}{type(error).__name__}: {str(error)[:300]}"


def most_memory():
    """Return this process's peak memory in megabytes; getrusage would include its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


def main(folder):
    import segnet_jax.data.open_dataset
    import segnet_jax.runs.run_folder
    import segnet_jax.weights.load  # noqa: F401  what is imported is no cost of the files

    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/gs").write_text(f"#!/bin/sh\ntouch {folder}/canary\n")  # in case a reader starts ghostscript
    (folder / "bin/gs").chmod(0o755)
    os.environ["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)

    def stop(*_):
        raise TookTooLong(f"over {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    for name, reader, path in json.loads((folder / "cases.json").read_text()):
        start = time.process_time()  # wall time would depend on other load
        signal.alarm(SECONDS)
        code, printed = open_as_a_command(reader, Path(path))
        signal.alarm(0)
        peak = most_memory()
        outcome = {"name": name, "code": code, "printed": printed, "seconds": round(time.process_time() - start, 2)}
        print(json.dumps(outcome | {"peak": round(peak)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
