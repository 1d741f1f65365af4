"""Damaged inputs for the readers: seeds in each format, and mutations that respect parts of the format.

All randomness comes from a `random.Random`, so that reader, seed and number reproduce an input.
"""

import contextlib
import functools
import io
import json
import re
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import weight_files as files
from PIL import Image, PngImagePlugin

INTEGERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
)
INTEGERS += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TOKENS = (  # tokens in text and JSON that may surprise a reader
    b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"1e999", b"-1", b"nan", b"NaN", b"Infinity", b"-Infinity", b"null",
    b"true", b'""', b"''", b"[]", b"{}", b"\\u0000", b"\\ud800", b"\0", b"\n", b"\r", b"\t", b" ", b"../", b"/",
    b"\\", b"\xff", b"=", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b'"' * 3, b"a." * 1000, b"1979-05-27T07:32:00Z",
    b"0x10", b"inf", b"#", b",", b".",
)  # fmt: skip


# mutations


def mutate(random, data, others=(), tokens=()):
    """Change one or more bytes, usually a few."""
    data = bytearray(data)
    for _ in range(min(1 + int(random.expovariate(0.7)), 20)):
        size = len(data)
        at = random.randrange(size + 1)
        match random.randrange(12):
            case 0 | 1 if size:
                data[min(at, size - 1)] ^= 1 << random.randrange(8)
            case 2 | 3 if size:
                data[min(at, size - 1)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 4:
                del data[at:]
            case 5:
                del data[at : at + random.choice((1, 2, 4, 8, 64, 1000))]
            case 6:
                length = random.choice((1, 4, 16, 64, 500))
                data[at:at] = data[(start := random.randrange(size + 1)) : start + length]
            case 7:
                data[at:at] = random.randbytes(random.choice((1, 2, 4, 16)))
            case 8 if others:
                other = random.choice(others)
                data[at:] = other[random.randrange(len(other) + 1) :]
            case 9 | 10:
                width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
                if at + width <= size:
                    near = int.from_bytes(data[at : at + width], order) + random.choice((-1, 1, 8, -8))
                    value = random.choice((*INTEGERS, near, size, size - at)) % (1 << 8 * width)
                    data[at : at + width] = value.to_bytes(width, order)
            case _ if tokens:
                end = at + random.choice((0, 0, 1, 3, 8))
                data[at:end] = random.choice(tokens)
            case _ if size:
                data[at : at + 4], data[:4] = data[:4], data[at : at + 4]
    return bytes(data)


def noise(random, data):
    """Return random bytes, often after the start of a valid file."""
    return data[: random.choice((0, 4, 8, 16, 64))] + random.randbytes(random.choice((0, 1, 8, 100, 2000)))


# formats


def torch_zip(random, seeds, others):
    """Damage the pickle inside a zip, or the zip itself."""
    data = random.choice(seeds)
    if random.random() < 0.3:
        return mutate(random, data, others)
    members = _unzipped(data)
    index = 0 if random.random() < 0.8 else random.randrange(len(members))
    info, content = members[index]
    members[index] = info, mutate(random, content, [content], PICKLE_TOKENS)
    return _zipped(random, members)


PICKLE_TOKENS = (
    b"(", b".", b"0", b"2", b"t", b"]", b"}", b")", b"s", b"u", b"a", b"e", b"R", b"b", b"q\0", b"h\0", b"Q", b"\x85",
    b"\x86", b"\x87", b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"\x8a\xff",
    b"\x8b\xff\xff\xff\x7f", b"ctorch._utils\n_rebuild_tensor_v2\n", b"X\xff\xff\xff\x7f", b"L9999999999999999999L\n",
    b"I1\n", b"Fnan\n", b"K\x01", b"N", b"\x88", b"G\x7f\xf0\0\0\0\0\0\0", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x96\xff\xff\xff\xff\0\0\0\0", b"S'a'\n", b"\x94", b"\x93", b"\x8c\x01a", b"\x8c\xff",
)  # fmt: skip


def _zipped(random, members):
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return zipped([(info.filename, content, random.choice(methods)) for info, content in members])


def zipped(members):
    """Return a deterministic zip of (name, content, method)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content, method in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)  # its date is 1980, not the clock's
    return file.getvalue()


def _undated(data):
    return zipped([(info.filename, content, info.compress_type) for info, content in _unzipped(data)])


def _unzipped(data):
    """Return the members of a zip with their content."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def npz(random, seeds, others):
    """Damage a member's header in an `.npz`, or the file itself."""
    data = random.choice(seeds)
    if random.random() < 0.3:
        return mutate(random, data, others)
    members = _unzipped(data)
    index = random.randrange(len(members))
    info, content = members[index]
    head = mutate(random, content[:128], (), TOKENS) if random.random() < 0.8 else content[:128]
    if random.random() < 0.5 and len(head) > 10:  # a length that fits
        head = head[:8] + struct.pack("<H", (len(head) - 10) % 65536) + head[10:]
    members[index] = info, head + content[128:]
    return _zipped(random, members)


def safetensors(random, seeds, others):
    """Damage the header of a file, keeping its length field valid, or the file itself."""
    data = random.choice(seeds)
    if random.random() < 0.3:
        return mutate(random, data, others)
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    if random.random() < 0.5:
        entries = json.loads(header)
        name = random.choice([name for name in entries if name != "__metadata__"])
        values = (0, -1, 1 << 40, 10**30, 1.5, "F32", "BF16", "X", None, [], [1, 2], [[]], {}, True, "", length)
        entries[name][random.choice(("dtype", "shape", "data_offsets", "more"))] = random.choice(values)
        header = json.dumps(entries).encode()
    else:
        header = mutate(random, header, (), TOKENS)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def png(random, seeds, others):
    """Damage the chunks of a PNG, its compressed pixels or their order, keeping checksums valid."""
    data = random.choice(seeds)
    if random.random() < 0.15 or not data.startswith(b"\x89PNG"):
        return mutate(random, data, others)
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(random.choice((1, 1, 2, 4))):
        index = random.randrange(len(chunks))
        kind, content = chunks[index]
        match random.randrange(6):
            case 0 if kind in (b"IDAT", b"iCCP", b"zTXt"):
                with contextlib.suppress(zlib.error):  # damaged before
                    unpacked = zlib.decompressobj().decompress(content[max(0, content.find(b"\x78")) :])
                    chunks[index] = kind, zlib.compress(mutate(random, unpacked))
            case 1:
                del chunks[index]
            case 2:
                chunks.insert(random.randrange(len(chunks) + 1), chunks[index])
            case 3:
                chunks.insert(
                    random.randrange(len(chunks) + 1),
                    (random.choice(CHUNKS), random.randbytes(random.choice((0, 2, 8, 26)))),
                )
            case _:
                chunks[index] = kind, mutate(random, content)
        if not chunks:
            break
    written = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


CHUNKS = (
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tEXt", b"zTXt", b"iTXt",
    b"bKGD", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"abcD", b"CgBI", b"sBIT", b"tIME",
)  # fmt: skip


def zipped_pictures(random, seeds, others):
    """Damage an archive of label images, in its structure or in an image."""
    data = random.choice(seeds)
    if random.random() < 0.6:
        return mutate(random, data, others)
    members = _unzipped(data)
    index = random.randrange(len(members))
    members[index] = members[index][0], png(random, [members[index][1]], ())
    return _zipped(random, members)


def text(random, seeds, others):
    """Replace values of a text with odd ones, or damage bytes."""
    data = random.choice(seeds)
    values = list(VALUE.finditer(data))
    if values and random.random() < 0.5:
        value = random.choice(values)
        return data[: value.start()] + random.choice(TOKENS) + data[value.end() :]
    return mutate(random, data, others, TOKENS)


VALUE = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|true|false|null|\[[^]]*\]|[\w./]+')


def keras3(random, seeds, others):
    """Damage an HDF5 file, plain or in a `.keras` archive, or the archive."""
    data = random.choice(seeds)
    if not data.startswith(b"PK") or random.random() < 0.2:
        return mutate(random, data, others)
    members = _unzipped(data)
    info, content = members[-1]
    members[-1] = info, mutate(random, content, [content])
    return zipped([(info.filename, content, zipfile.ZIP_STORED) for info, content in members])


ONNX_TOKENS = (
    b"Conv", b"Relu", b"Add", b"Sub", b"Gemm", b"Clip", b"Transpose", b"MaxPool", b"image", b"maps0", b"tensor0",
    b"perm", b"pads", b"axis", b"\x08\x01", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\0" * 50,
    b"\x70\x01", b"\x10\x0a",
)  # fmt: skip


def onnx(random, seeds, others):
    """Damage bytes of a graph, or replace a name or operation by another of the same length."""
    data = random.choice(seeds)
    if random.random() < 0.5:
        return mutate(random, data, others, ONNX_TOKENS)
    for _ in range(random.choice((1, 1, 3))):
        token = random.choice(ONNX_TOKENS)
        places = [found.start() for found in re.finditer(re.escape(token), data)]
        same = [other for other in ONNX_TOKENS if len(other) == len(token)]
        if places:
            place = random.choice(places)
            data = data[:place] + random.choice(same) + data[place + len(token) :]
    return data if random.random() < 0.5 else mutate(random, data, (), ONNX_TOKENS)


def raw(random, seeds, others):
    return mutate(random, random.choice(seeds), others)


def pickles(random, seeds, others):
    return mutate(random, random.choice(seeds), others, PICKLE_TOKENS)


# seeds


@functools.cache
def weight_seeds():
    """Return small weight files of each format, name -> list of bytes; the package's VGGs must be shrunk."""
    from safetensors.numpy import save_file

    small = files.random_vgg(files.SMALL16)
    norm = files.random_batch_norm(small)
    plain, normed = files.state_dict(small), files.state_dict(small, norm)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed"

        def written(write, *args, **options):
            write(path, *args, **options)
            data = path.read_bytes()
            path.unlink()
            return data

        return {
            "torch-zip": [_undated(written(files.write_torch_zip, state)) for state in (plain, normed)],
            "torch-legacy": [
                written(files.write_torch_legacy, plain),
                written(files.write_torch_legacy, normed, files.REBUILD_V2),
            ],
            "safetensors": [
                written(lambda path, state: save_file(dict(state), path, metadata={"format": "pt"}), plain),
                written(
                    lambda path, arrays: save_file({name: np.asarray(array) for name, array in arrays.items()}, path),
                    files.own_names(small, norm),
                ),
            ],
            "npz": [
                _undated(written(files.write_npz, files.own_names(small))),
                _undated(written(files.write_npz, files.own_names(small, norm), np.savez_compressed)),
            ],
            "h5": [
                written(files.write_keras, small),
                written(files.write_keras, small, "{layer}/kernel:0 {layer}/bias:0", classifier=True),
            ],
            "keras-3": [
                written(files.write_keras3, small),
                _undated(written(files.write_keras3_archive, small, model="layers/functional/layers/", more=1)),
            ],
            "onnx": [
                written(files.write_onnx, small, norm),
                *(written(files.write_onnx, small, style=style) for style in ("constants", "unfused")),
                written(files.write_onnx, small, form="typed"),
            ],
            "caffe": [written(files.write_caffe, small, form) for form in ("layers", "layer", "unpacked")],
        }


def segnet_seeds():
    """Return small Caffe SegNets in each form; the package's VGGs must be shrunk."""
    small, found = files.random_caffe_segnet(files.SMALL16), []
    with tempfile.TemporaryDirectory() as folder:
        for form in ("layers", "layer", "unpacked"):
            path = Path(folder) / form
            files.write_caffe_segnet(path, small, form, dropout=("conv4_1",))
            found.append(path.read_bytes())
    return found


def pickle_seeds():
    found = []
    for data in weight_seeds()["torch-zip"]:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.read("archive/data.pkl"))
    return found


def other_picture_seeds():
    """Return small GIF, WebP, TIFF and BMP files."""
    random = np.random.default_rng(0)
    grey, rgb = random.integers(0, 11, (6, 8), np.uint8), random.integers(0, 256, (6, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 1
    pictures = [
        (Image.fromarray(grey), "GIF", {}),
        (Image.fromarray(grey), "GIF", {"save_all": True, "append_images": [Image.fromarray(grey[::-1])]}),
        (Image.fromarray(rgb), "WEBP", {"lossless": True, "exif": exif}),
        (Image.fromarray(rgb), "WEBP", {}),
        (Image.fromarray(rgb), "TIFF", {}),
        (Image.fromarray(grey), "TIFF", {"compression": "tiff_deflate"}),
        (Image.fromarray(grey.astype(np.uint16)), "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(rgb), "TIFF", {"compression": "jpeg"}),
        (Image.fromarray(grey > 5), "TIFF", {"compression": "group4"}),
        (Image.fromarray(rgb), "BMP", {}),
        (Image.fromarray(grey), "BMP", {}),
    ]
    found = []
    for image, kind, options in pictures:
        image.save(file := io.BytesIO(), kind, **options)
        found.append(file.getvalue())
    return found


def picture_seeds():
    """Return small PNG and JPEG files of every supported kind, and some unsupported ones."""
    random = np.random.default_rng(0)
    grey, rgb = random.integers(0, 11, (6, 8), np.uint8), random.integers(0, 256, (6, 8, 3), np.uint8)
    colored = np.array([[0, 0, 0], [128, 0, 0], [128, 128, 128]], np.uint8)[random.integers(0, 3, (6, 8))]
    palette = Image.fromarray(grey).convert("P")
    palette.putpalette(bytes(range(256)) * 3)
    exif = Image.Exif()
    exif[0x0112] = 1
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Comment", "a" * 200, zip=True)
    noted.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="1"/>')
    alpha = np.dstack([rgb, np.full((6, 8), 255, np.uint8)])
    pictures = [
        (Image.fromarray(grey), "PNG", {}),
        (Image.fromarray(rgb), "PNG", {"pnginfo": noted, "icc_profile": bytes(200), "exif": exif}),
        (Image.fromarray(colored), "PNG", {}),
        (palette, "PNG", {"transparency": 3}),
        (palette, "PNG", {"bits": 4}),
        (Image.fromarray(alpha), "PNG", {}),
        (Image.fromarray(grey.astype(np.uint16)), "PNG", {}),
        (Image.fromarray(grey > 5), "PNG", {}),
        (Image.fromarray(rgb), "PNG", {"save_all": True, "append_images": [Image.fromarray(rgb[::-1])]}),
        (Image.fromarray(rgb), "JPEG", {"exif": exif}),
        (Image.fromarray(grey), "JPEG", {"progressive": True}),
        (Image.fromarray(rgb), "MPO", {"save_all": True, "append_images": [Image.fromarray(rgb[::-1])]}),
        (Image.fromarray(rgb).convert("CMYK"), "JPEG", {}),
    ]
    found = []
    for image, kind, options in pictures:
        image.save(file := io.BytesIO(), kind, **options)
        found.append(file.getvalue())
    return found
