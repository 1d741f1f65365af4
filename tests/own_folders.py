"""Write folders of images and labels in every layout from the same samples, with Pillow only."""

import io

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.synthetic.street_scenes import street_scenes

SIZE = 24, 32  # rows, columns

# CamVid's classes among other classes, by position: sky, building, pole, road, pavement, tree, sign, fence, car,
# pedestrian, bicyclist
CITYSCAPES_IDS = (23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33)
CITYSCAPES_TRAIN_IDS = (10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 18)
VOC_IDS = (1, 2, 3, 0, 5, 16, 7, 8, 17, 15, 20)


def scenes(num_train=5, num_val=2):
    """Return split -> [(name, image, label)] of rendered scenes; classes 0..10 and VOID."""
    dataset = street_scenes(num_train, num_val, *SIZE, seed=1)
    return {
        split: [(name, *samples.read(index)) for index, name in enumerate(samples.names)]
        for split, samples in dataset.splits.items()
    }


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def changed(label, ids, void=VOID):
    """Return a label with other values for the classes and void."""
    table = np.full(256, void, np.uint8)
    table[: len(ids)] = ids
    return table[label]


def painted(label, colors, void=(0, 0, 0)):
    table = np.full((256, 3), void, np.uint8)
    table[: len(colors)] = colors
    return table[label]


def with_palette(label, colors):
    """Return a palette image whose indices are the label's values, with arbitrary colors."""
    picture = Image.new("P", label.shape[::-1])
    picture.putpalette(sum(map(list, colors), []) + [0] * (768 - 3 * len(colors)))
    picture.putdata(label.ravel().tolist())
    return picture


def voc_colors(number):
    """Return Pascal VOC's palette, computed as in its development kit."""
    colors = []
    for index in range(number):
        red = green = blue = 0
        for place in range(8):
            red |= (index & 1) << 7 - place
            green |= (index >> 1 & 1) << 7 - place
            blue |= (index >> 2 & 1) << 7 - place
            index >>= 3
        colors.append((red, green, blue))
    return colors


def own(folder, samples, images="images/{name}.png", labels="labels/{name}.png", paint=lambda label: label):
    """Write a dataset folder; the paths may contain `{split}`."""
    for split, each in samples.items():
        for name, image, label in each:
            save(folder / images.format(split=split, name=name), image)
            save(folder / labels.format(split=split, name=name), paint(label))
    return folder


def lists(folder, samples, line="{name}", val="val.txt"):
    for split, path in (("train", "train.txt"), ("val", val)):
        (folder / path).write_text("".join(line.format(name=name) + "\n" for name, _, _ in samples[split]))


def table_toml(folder, names=CAMVID.names, colors=CAMVID.colors):
    rows = (f"  {{ name = {name!r}, color = {list(color)} }},\n" for name, color in zip(names, colors, strict=True))
    (folder / "classes.toml").write_text(f"classes = [\n{''.join(rows)}]\n")


def label_colors(folder):
    rows = (f"{r} {g} {b}\t{name}\n" for name, (r, g, b) in zip(CAMVID.names, CAMVID.colors, strict=True))
    (folder / "label_colors.txt").write_text("".join(rows) + "0 0 0\t\tVoid\n")


def labelmap(folder):
    rows = (f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(CAMVID.names, CAMVID.colors, strict=True))
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(rows) + "ignore:0,0,0::\n")


def codes(folder, void_at=None):
    names = list(CAMVID.names)
    if void_at is not None:
        names.insert(void_at, "Void")
    (folder / "codes.txt").write_text("\r\n".join(names))


# --- every layout, with the same samples in each ---


def flat(folder, samples):
    own(folder, samples)
    lists(folder, samples)
    table_toml(folder)


def colors(folder, samples):
    own(
        folder,
        samples,
        "images/{split}/{name}.png",
        "masks/{split}/{name}_L.png",
        lambda each: painted(each, CAMVID.colors),
    )
    label_colors(folder)


def parts(folder, samples):
    own(folder, samples, "{split}/images/{name}.png", "{split}/annotations/{name}.png")
    labelmap(folder)


def training(folder, samples):
    """Write ADE20K's folder names."""
    for split, name in (("train", "training"), ("val", "validation")):
        own(folder, {split: samples[split]}, f"images/{name}/{{name}}.png", f"annotations/{name}/{{name}}.png")
    codes(folder)


def sixteen_bits(folder, samples):
    own(folder, samples, paint=lambda label: label.astype(np.uint16))
    lists(folder, samples, "/home/of/another/images/{name}.png", val="valid.txt")
    (folder / "train.txt").unlink()
    codes(folder)


def palettes(folder, samples):
    own(folder, samples, paint=lambda label: with_palette(label, voc_colors(256)[::-1]))
    lists(folder, samples, "images/{name}.png labels/{name}.png")
    codes(folder)


def fast_ai(folder, samples):
    ids, void = (0, 1, 2, *range(4, 12)), 3
    own(folder, samples, "images/{name}.png", "labels/{name}_P.png", lambda label: changed(label, ids, void))
    (folder / "valid.txt").write_text("\n".join(f"{name}.png" for name, _, _ in samples["val"]))
    codes(folder, void_at=void)


def cityscapes(folder, samples, ending="labelIds", ids=CITYSCAPES_IDS, void=0):
    own(
        folder,
        samples,
        "leftImg8bit/{split}/city/{name}_leftImg8bit.png",
        f"gtFine/{{split}}/city/{{name}}_gtFine_{ending}.png",
        lambda label: changed(label, ids, void),
    )


def cityscapes_train_ids(folder, samples):
    cityscapes(folder, samples)
    cityscapes(folder, samples, "labelTrainIds", CITYSCAPES_TRAIN_IDS, VOID)


def pascal_voc(folder, samples):
    own(
        folder,
        samples,
        "JPEGImages/{name}.png",
        "SegmentationClass/{name}.png",
        lambda label: with_palette(changed(label, VOC_IDS), voc_colors(256)),
    )
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    lists(folder / "ImageSets/Segmentation", samples)


def cvat(folder, samples):
    """Write a CVAT export: color labels, their table, and one list without a validation split."""
    own(
        folder,
        samples,
        "JPEGImages/{name}.png",
        "SegmentationClass/{name}.png",
        lambda label: painted(label, CAMVID.colors),
    )
    labelmap(folder)


OTHER_LAYOUTS = (cityscapes, cityscapes_train_ids, pascal_voc, cvat)
CAMVID_LAYOUTS = (flat, colors, parts, training, sixteen_bits, palettes, fast_ai)
"""Layouts that keep CamVid's classes and define their validation split."""
