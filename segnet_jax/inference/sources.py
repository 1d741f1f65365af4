"""Inputs of `predict`: images, folders, videos and cameras, and the names of their outputs."""

import logging
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from segnet_jax.data.images.suffixes import IMAGE_SUFFIXES
from segnet_jax.system.errors import UserError, listed, shown
from segnet_jax.system.files import did_you_mean, expanded

logger = logging.getLogger(__name__)

VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts")
_MAX_NAME_BYTES = 180  # with suffixes, names stay below the 255 bytes of most file systems


@dataclass(frozen=True)
class Source:
    """One input to segment.

    Attributes:
      path: file, or a camera's number.
      kind: kind of input.
      name: name of its outputs, without suffixes.
    """

    path: pathlib.Path
    kind: Literal["image", "video", "camera"]
    name: str = ""

    @property
    def display_name(self) -> str:
        """Printable name for messages."""
        return shown(f"camera {self.path}" if self.kind == "camera" else str(self.path))


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Find the inputs that paths refer to.

    Args:
      paths: files, folders (of which images and videos are used, but not those in subfolders), and camera numbers.

    Raises:
      UserError: If no path is given, one does not exist, or one is neither image nor video.
    """
    if not paths:
        raise UserError("nothing to predict; add images, folders of images, or videos after the run")
    sources = [source for path in paths for source in _sources_of(path)]
    duplicates = [source.display_name for source, count in Counter(sources).items() if count > 1]
    if duplicates:
        raise UserError(f"the same input is given twice: {listed(duplicates)}")
    return sources


def _sources_of(given: str) -> list[Source]:
    path = expanded(given)
    if given.isdecimal() and not os.path.lexists(path):
        return [Source(pathlib.Path(given), "camera")]
    if os.path.isdir(path):
        return _sources_in(path)
    if not os.path.lexists(path):
        raise UserError(f"no file or folder {given}{did_you_mean(path)}", kind="missing-file", file=given)
    kind = _kind_of(path)
    if kind is None:
        known = f"an image ({' '.join(IMAGE_SUFFIXES)}) or a video ({' '.join(VIDEOS)})"
        what = f"{given} has no file name extension of {known}"
        raise UserError(what, kind="unknown-format", file=given, fix="convert it, or correct its extension")
    return [Source(path, kind)]


def _sources_in(folder: pathlib.Path) -> list[Source]:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
    kinds = {name: _kind_of(folder / name) for name in names}
    others = Counter(
        pathlib.Path(name).suffix.lower() or "without extension"
        for name, kind in kinds.items()
        if kind is None and not os.path.isdir(folder / name)
    )
    other_files = listed([f"{count} {shown(extension)}" for extension, count in others.most_common()])
    if not any(kinds.values()):
        inner = [name for name in names if os.path.isdir(folder / name)]
        if other_files:
            content = f"it contains {other_files}"
        else:
            content = f"it contains the folders {listed(inner)}" if inner else "it is empty"
        what = f"no image ({' '.join(IMAGE_SUFFIXES)}) in {folder}: {content}"
        raise UserError(what, kind="no-pictures", file=str(folder), fix="give the folder that contains the images")
    if others:
        logger.info(f"note: ignored in {shown(str(folder))}: {other_files}")
    return [Source(folder / name, kind) for name, kind in kinds.items() if kind]


def _kind_of(path: pathlib.Path) -> Literal["image", "video"] | None:
    extension = path.suffix.lower()
    return "image" if extension in IMAGE_SUFFIXES else "video" if extension in VIDEOS else None


def _printable(stem: str) -> str:
    """Replace the unprintable characters of a name."""
    return "".join(character if character.isprintable() else "_" for character in stem)


def name_outputs(sources: Iterable[Source], suffixes: Callable[[Source], Sequence[str]]) -> list[Source]:
    """Give each source a unique output name, so that outputs do not overwrite each other.

    The name is that of the input without extension, numbered if it is taken: a.png and b/a.jpg become a and a-2.

    Args:
      sources: inputs, in order.
      suffixes: returns the suffixes of a source's output files; all of them must be free.
    """
    taken: set[str] = set()
    named, numbered = [], []
    for source in sources:
        stem = f"camera-{source.path}" if source.kind == "camera" else _printable(source.path.stem)
        stem = os.fsdecode(os.fsencode(stem)[:_MAX_NAME_BYTES]) if len(os.fsencode(stem)) > _MAX_NAME_BYTES else stem
        number, name = 1, stem
        while not taken.isdisjoint(files := {f"{name}{suffix}".casefold() for suffix in suffixes(source)}):
            number += 1
            name = f"{stem}-{number}"
        taken |= files
        named.append(Source(source.path, source.kind, name))
        if number > 1:
            numbered.append(f"{shown(name)} for {source.display_name}")
    if numbered:
        logger.info(f"note: {len(numbered)} outputs are numbered because their names are taken: {listed(numbered)}")
    return named
