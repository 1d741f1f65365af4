"""What `predict` was given to label: images, folders of them, videos, a camera; and what its outputs are called."""

import logging
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from segnet_jax.system.errors import UserError, listed, shown
from segnet_jax.system.files import did_you_mean, expanded

logger = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts")
_MOST_BYTES = 180  # of a name; with its ending, file systems take 255


@dataclass(frozen=True)
class Source:
    """One thing to label.

    Attributes:
      path: of the file; of a camera, its number.
      kind: what it is.
      name: of its outputs, without their endings.
    """

    path: pathlib.Path
    kind: Literal["image", "video", "camera"]
    name: str = ""

    @property
    def told(self) -> str:
        """What messages call it."""
        return shown(f"camera {self.path}" if self.kind == "camera" else str(self.path))


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Finds what paths stand for.

    Args:
      paths: files, folders, of which the pictures and videos count that lie in them directly, and numbers of cameras.

    Raises:
      UserError: for no path at all, one that is not there, and a folder or file of another kind.
    """
    if not paths:
        raise UserError("nothing to predict: name images, folders of images, or videos after the run")
    sources = [source for path in paths for source in _sources_of(path)]
    twice = [source.told for source, count in Counter(sources).items() if count > 1]
    if twice:
        raise UserError(f"named twice: {listed(twice)}")
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
        what = f"{given} is no picture ({' '.join(IMAGES)}) and no video ({' '.join(VIDEOS)}) by its ending"
        raise UserError(what, kind="unknown-format", file=given, fix="convert it, or give it its ending")
    return [Source(path, kind)]


def _sources_in(folder: pathlib.Path) -> list[Source]:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
    kinds = {name: _kind_of(folder / name) for name in names}
    others = Counter(
        pathlib.Path(name).suffix.lower() or "without ending"
        for name, kind in kinds.items()
        if kind is None and not os.path.isdir(folder / name)
    )
    told = listed([f"{count} {shown(ending)}" for ending, count in others.most_common()])
    if not any(kinds.values()):
        inner = [name for name in names if os.path.isdir(folder / name)]
        holds = f"it holds {told}" if told else f"it holds the folders {listed(inner)}" if inner else "it is empty"
        what = f"no picture ({' '.join(IMAGES)}) in {folder}: {holds}"
        raise UserError(what, kind="no-pictures", file=str(folder), fix="name the folder that the pictures lie in")
    if others:
        logger.info(f"note: left out in {shown(str(folder))}: {told}")
    return [Source(folder / name, kind) for name, kind in kinds.items() if kind]


def _kind_of(path: pathlib.Path) -> Literal["image", "video"] | None:
    ending = path.suffix.lower()
    return "image" if ending in IMAGES else "video" if ending in VIDEOS else None


def _plain(stem: str) -> str:
    """A file's name as outputs may be called by it: what cannot be printed is left out of it."""
    return "".join(letter if letter.isprintable() else "_" for letter in stem)


def name_outputs(sources: Iterable[Source], endings: Callable[[Source], Sequence[str]]) -> list[Source]:
    """Gives each source a name that is its own, so that no output takes another's place.

    An input's name without its ending, and a number behind it where that is taken: a.png and b/a.jpg become a and a-2.

    Args:
      sources: in order.
      endings: what outputs of a source end in; the first may be another's whole name, as a_overlay.png's is.
    """
    taken: set[str] = set()
    named, numbered = [], []
    for source in sources:
        stem = f"camera-{source.path}" if source.kind == "camera" else _plain(source.path.stem)
        stem = os.fsdecode(os.fsencode(stem)[:_MOST_BYTES]) if len(os.fsencode(stem)) > _MOST_BYTES else stem
        number, name = 1, stem
        while not taken.isdisjoint(files := {f"{name}{ending}".casefold() for ending in endings(source)}):
            number += 1
            name = f"{stem}-{number}"
        taken |= files
        named.append(Source(source.path, source.kind, name))
        if number > 1:
            numbered.append(f"{shown(name)} for {source.told}")
    if numbered:
        logger.info(f"note: {len(numbered)} outputs with a number, as their name is taken: {listed(numbered)}")
    return named
