"""Copy CamVid's training and validation frames as JPEG, 26 MB instead of 180, to transfer less data.

python experiments/h200/jpeg_copy.py DIR OUT

DIR and OUT are in the tutorial's layout; labels stay PNG. Scores on JPEG frames differ from those on CamVid's PNGs.
"""

import pathlib
import shutil
import sys

from PIL import Image

QUALITY = 90


def copy(source: pathlib.Path, out: pathlib.Path) -> int:
    """Copy both splits; return the number of frames."""
    number = 0
    for split in ("train", "val"):
        (out / split).mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / f"{split}annot", out / f"{split}annot", dirs_exist_ok=True)
        pairs = [line.split() for line in (source / f"{split}.txt").read_text().splitlines() if line.strip()]
        for image, _ in pairs:
            name = pathlib.PurePosixPath(image).name
            frame = Image.open(source / split / name).convert("RGB")
            frame.save(out / split / pathlib.PurePosixPath(name).with_suffix(".jpg"), quality=QUALITY)
        lines = (f"{pathlib.PurePosixPath(image).with_suffix('.jpg')} {label}\n" for image, label in pairs)
        (out / f"{split}.txt").write_text("".join(lines))
        number += len(pairs)
    return number


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python experiments/h200/jpeg_copy.py DIR OUT")
    print(f"{copy(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))} frames")
