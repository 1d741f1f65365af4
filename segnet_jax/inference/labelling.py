"""The work of `predict`: reads ahead of the devices, labels in batches, writes behind them."""

import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.picture_header import claimed_pixels
from segnet_jax.inference.outputs import FRAMES, VIDEO, Outputs, PredictionEntry
from segnet_jax.inference.predictor import Predictor, Prepared
from segnet_jax.inference.sources import Source
from segnet_jax.inference.video import Video, VideoWriter, camera_frame
from segnet_jax.reporting import overlay
from segnet_jax.system import budget
from segnet_jax.system.console import bar
from segnet_jax.system.errors import Fault, Stopped, UserError
from segnet_jax.system.signals import Stop

T, U = TypeVar("T"), TypeVar("U")
_THREADS = min(os.cpu_count() or 1, 16)
_MOST_PIXELS = 32_000_000  # of pictures that wait at each stage; a single one may have more


def label_all(
    sources: Sequence[Source], predictor: Predictor, outputs: Outputs, stop: Stop
) -> tuple[dict[Source, PredictionEntry], dict[Source, tuple[Fault, ...]]]:
    """Labels all sources, or as many as there is time for until somebody asks to stop.

    Returns:
      What is told of those that are done, and what is wrong with those that are not, or with their labels.
    """
    entries: dict[Source, PredictionEntry] = {}
    faults: dict[Source, tuple[Fault, ...]] = {}
    videos = [source for source in sources if source.kind == "video"]
    images = [source for source in sources if source.kind != "video"]
    with bar("predicting", len(images)) as advance:
        for source, found in _label_images(images, predictor, outputs, stop):
            if isinstance(found, PredictionEntry):
                entries[source] = found
            if found.faults:
                faults[source] = found.faults
            advance()
    for source in videos:
        try:
            entries[source] = outputs.write(partial(_label_video, source, predictor, outputs, stop))
        except UserError as error:
            faults[source] = error.faults
        except Stopped:
            break
    return entries, faults


def _label_images(
    sources: Sequence[Source], predictor: Predictor, outputs: Outputs, stop: Stop
) -> Iterator[tuple[Source, PredictionEntry | UserError]]:
    """Labels images in batches of those that the network sees at one size, and yields each when it is written."""
    groups: dict[tuple[int, ...], list[tuple[Source, Prepared]]] = {}  # waiting, by that size and their own
    writing: deque[tuple[Source, int, Future[PredictionEntry]]] = deque()  # with the picture's pixels
    most = 2 * predictor.batch_size  # that are held in memory at each stage

    def take(batch: list[tuple[Source, Prepared]]) -> Iterator[tuple[Source, PredictionEntry]]:
        predictions = predictor.predict([prepared for _, prepared in batch])
        for (source, prepared), prediction in zip(batch, predictions, strict=True):
            pixels = prepared.image.shape[0] * prepared.image.shape[1]
            writing.append((source, pixels, writers.submit(outputs.image, source, prepared.image, prediction)))
        yield from written(most)

    def written(kept: int) -> Iterator[tuple[Source, PredictionEntry]]:
        while len(writing) > kept or sum(pixels for _, pixels, _ in writing) > _MOST_PIXELS:
            source, _, future = writing.popleft()
            yield source, future.result()

    with ThreadPoolExecutor(_THREADS) as writers:
        prepare = partial(_read, prepare=predictor.prepare, read=outputs.read)
        for source, read in _ahead(prepare, sources, most, pixels=_pixels_of):
            if stop.requested():
                break
            if isinstance(read, UserError):
                yield source, read
                continue
            group = groups.setdefault((*read.input.shape, *_alike(read.image.shape)), [])
            group.append((source, read))
            del read
            while any(len(group) == predictor.batch_size for group in groups.values()) or _are_too_many(groups, most):
                fullest = max(groups, key=lambda size: _pixels_in(groups[size]))
                full = [size for size, group in groups.items() if len(group) == predictor.batch_size]
                yield from take(groups.pop(full[0] if full else fullest))
        for group in groups.values():
            if not stop.requested():
                yield from take(group)
        yield from written(0)


def _alike(shape: tuple[int, ...]) -> tuple[int, int]:
    """What pictures of a batch have in common: each side within a factor of two, as a batch's are brought to one size.

    A wide and a tall one together would come to a size that is as wide and as tall.
    """
    height, width = (math.ceil(math.log2(side)) for side in shape[:2])
    return max(height, 9), max(width, 9)  # up to 512 pixels all are alike


def _pixels_in(group: list[tuple[Source, Prepared]]) -> int:
    return sum(prepared.image.shape[0] * prepared.image.shape[1] for _, prepared in group)


def _are_too_many(groups: dict[tuple[int, ...], list[tuple[Source, Prepared]]], most: int) -> bool:
    return sum(map(len, groups.values())) > most or sum(map(_pixels_in, groups.values())) > _MOST_PIXELS


def _pixels_of(source: Source) -> int:
    return claimed_pixels(source.path) if source.kind == "image" else 0


def _read(
    source: Source, prepare: Callable[[np.ndarray], Prepared], read: Callable[[Source], dict[str, Any]]
) -> Prepared | UserError:
    try:
        if source.kind == "camera":
            return prepare(camera_frame(int(str(source.path))))
        with budget.pictures.scope():
            return prepare(read_image(source.path, source.told, **read(source)))
    except UserError as error:
        return error


def _label_video(source: Source, predictor: Predictor, outputs: Outputs, stop: Stop) -> PredictionEntry:
    """Labels a video frame by frame; where that fails or is stopped, nothing is left of it but single frames.

    Raises:
      UserError: the video is at fault.
      Stopped: somebody asked to stop.
    """
    lay = partial(overlay.overlay_by_strips, classes=outputs.classes)
    counts, confidence, milliseconds, number = outputs.no_counts, 0.0, 0.0, 0
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Video(source.path, source.told))
        frames = map(predictor.prepare, video.frames())
        read = _ahead(lambda _: list(itertools.islice(frames, predictor.batch_size)), itertools.count(), 2, threads=1)
        stack.enter_context(contextlib.closing(read))  # before the video, which a thread is reading
        batches = itertools.takewhile(bool, (batch for _, batch in read))
        first = next(batches)
        size = first[0].image.shape[:2]
        if outputs.frames:
            outputs.frames_of(source).mkdir(parents=True)
        writers = stack.enter_context(ThreadPoolExecutor(_THREADS))
        advance = stack.enter_context(bar(f"predicting {source.path.name}", video.num_frames))
        writer = stack.enter_context(VideoWriter(outputs.folder / f"{source.name}{VIDEO}", video.rate, size))
        for batch in itertools.chain([first], batches):
            stop.check()
            predictions = predictor.predict(batch)
            ids = [prediction.class_ids for prediction in predictions]
            for picture in writers.map(lay, [prepared.image for prepared in batch], ids):
                writer.write(picture)
                advance()
            if outputs.frames:
                list(writers.map(partial(outputs.frame, source), itertools.count(number + 1), ids))
            counts = counts + sum(map(outputs.count, predictions))
            confidence += sum(prediction.confidence.mean() for prediction in predictions)
            milliseconds += sum(prediction.milliseconds for prediction in predictions)
            number += len(batch)
    row = outputs.row(source, size, [VIDEO, *[FRAMES] * outputs.frames], counts, confidence / number)
    row |= {"milliseconds": milliseconds / number, "num_frames": number, "frames_per_second": float(video.rate)}
    return PredictionEntry(row, counts)


def _ahead(
    function: Callable[[T], U],
    items: Iterable[T],
    count: int,
    threads: int = _THREADS,
    pixels: Callable[[T], int] = lambda item: 0,
) -> Iterator[tuple[T, U]]:
    """Each item and what a function makes of it, in order, worked out in threads some items ahead.

    Args:
      function: to call.
      items: to call it with.
      count: items to be ahead, at most.
      threads: to call it in.
      pixels: of an item; no more than `_MOST_PIXELS` are ahead, or one item that has more.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[tuple[T, int, Future[U]]] = deque()
        for item in items:
            size = pixels(item)
            while len(waiting) > count or waiting and size + sum(each[1] for each in waiting) > _MOST_PIXELS:
                first, _, future = waiting.popleft()
                yield first, future.result()
                del future
            waiting.append((item, size, pool.submit(function, item)))
        while waiting:
            first, _, future = waiting.popleft()
            yield first, future.result()
            del future
    finally:
        pool.shutdown(cancel_futures=True)
