"""The pipeline of `predict`: prefetch images, segment in batches, write in the background."""

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
from segnet_jax.inference.predictor import Predictor, PreparedImage
from segnet_jax.inference.sources import Source
from segnet_jax.inference.video import Video, VideoWriter, camera_frame
from segnet_jax.reporting import prediction_files
from segnet_jax.system import memory_budget
from segnet_jax.system.console import bar
from segnet_jax.system.errors import Fault, Stopped, UserError
from segnet_jax.system.signals import Stop

T, U = TypeVar("T"), TypeVar("U")
_THREADS = min(os.cpu_count() or 1, 16)
_MAX_PIXELS = 32_000_000  # of images waiting at each stage; a single image may have more


def segment_all(
    sources: Sequence[Source], predictor: Predictor, outputs: Outputs, stop: Stop
) -> tuple[dict[Source, PredictionEntry], dict[Source, tuple[Fault, ...]]]:
    """Segment all sources, until a stop is requested.

    Returns:
      The entries of the sources that are done, and the faults of the others or of their labels.
    """
    entries: dict[Source, PredictionEntry] = {}
    faults: dict[Source, tuple[Fault, ...]] = {}
    videos = [source for source in sources if source.kind == "video"]
    images = [source for source in sources if source.kind != "video"]
    with bar("predicting", len(images)) as advance:
        for source, result in _segment_images(images, predictor, outputs, stop):
            if isinstance(result, PredictionEntry):
                entries[source] = result
            if result.faults:
                faults[source] = result.faults
            advance()
    for source in videos:
        try:
            entries[source] = outputs.write(partial(_segment_video, source, predictor, outputs, stop))
        except UserError as error:
            faults[source] = error.faults
        except Stopped:
            break
    return entries, faults


def _segment_images(
    sources: Sequence[Source], predictor: Predictor, outputs: Outputs, stop: Stop
) -> Iterator[tuple[Source, PredictionEntry | UserError]]:
    """Segment images in batches of equal network input size, and yield each image once its outputs are written."""
    groups: dict[tuple[int, ...], list[tuple[Source, PreparedImage]]] = {}  # waiting, by input size and size class
    writing: deque[tuple[Source, int, Future[PredictionEntry]]] = deque()  # with the image's number of pixels
    max_waiting = 2 * predictor.batch_size  # images held in memory at each stage

    def take(batch: list[tuple[Source, PreparedImage]]) -> Iterator[tuple[Source, PredictionEntry]]:
        predictions = predictor.predict([prepared for _, prepared in batch])
        for (source, prepared), prediction in zip(batch, predictions, strict=True):
            pixels = prepared.image.shape[0] * prepared.image.shape[1]
            writing.append((source, pixels, writers.submit(outputs.image, source, prepared.image, prediction)))
        yield from written(max_waiting)

    def written(max_pending: int) -> Iterator[tuple[Source, PredictionEntry]]:
        while len(writing) > max_pending or sum(pixels for _, pixels, _ in writing) > _MAX_PIXELS:
            source, _, future = writing.popleft()
            yield source, future.result()

    with ThreadPoolExecutor(_THREADS) as writers:
        prepare = partial(_read, prepare=predictor.prepare, read=outputs.read)
        for source, read in _ahead(prepare, sources, max_waiting, pixels=_pixels_of):
            if stop.requested():
                break
            if isinstance(read, UserError):
                yield source, read
                continue
            group = groups.setdefault((*read.input.shape, *_size_class(read.image.shape)), [])
            group.append((source, read))
            del read
            while True:
                full = [key for key, group in groups.items() if len(group) == predictor.batch_size]
                if not full and not _are_too_many(groups, max_waiting):
                    break
                largest = max(groups, key=lambda key: _pixels_in(groups[key]))
                yield from take(groups.pop(full[0] if full else largest))
        for group in groups.values():
            if not stop.requested():
                yield from take(group)
        yield from written(0)


def _size_class(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the size class of an image: sides up to 512 pixels, or within a factor of two, are in one class.

    The outputs of a batch are padded to a common size, which would be too large for a wide and a tall image together.
    """
    height, width = (math.ceil(math.log2(side)) for side in shape[:2])
    return max(height, 9), max(width, 9)  # 2**9 = 512 pixels


def _pixels_in(group: list[tuple[Source, PreparedImage]]) -> int:
    return sum(prepared.image.shape[0] * prepared.image.shape[1] for _, prepared in group)


def _are_too_many(groups: dict[tuple[int, ...], list[tuple[Source, PreparedImage]]], max_waiting: int) -> bool:
    return sum(map(len, groups.values())) > max_waiting or sum(map(_pixels_in, groups.values())) > _MAX_PIXELS


def _pixels_of(source: Source) -> int:
    return claimed_pixels(source.path) if source.kind == "image" else 0


def _read(
    source: Source, prepare: Callable[[np.ndarray], PreparedImage], read: Callable[[Source], dict[str, Any]]
) -> PreparedImage | UserError:
    try:
        if source.kind == "camera":
            return prepare(camera_frame(int(str(source.path))))
        with memory_budget.pictures.scope():
            return prepare(read_image(source.path, source.display_name, **read(source)))
    except UserError as error:
        return error


def _segment_video(source: Source, predictor: Predictor, outputs: Outputs, stop: Stop) -> PredictionEntry:
    """Segment a video frame by frame; after a failure or stop, only frames already written remain.

    Raises:
      UserError: If the video cannot be read.
      Stopped: If a stop was requested.
    """
    draw_overlay = partial(prediction_files.overlay_by_strips, classes=outputs.classes)
    counts, confidence, milliseconds, number = outputs.no_counts, 0.0, 0.0, 0
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Video(source.path, source.display_name))
        frames = map(predictor.prepare, video.frames())
        read = _ahead(lambda _: list(itertools.islice(frames, predictor.batch_size)), itertools.count(), 2, threads=1)
        stack.enter_context(contextlib.closing(read))  # closed before the video, which its thread reads
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
            for picture in writers.map(draw_overlay, [prepared.image for prepared in batch], ids):
                writer.write(picture)
                advance()
            if outputs.frames:
                list(writers.map(partial(outputs.frame, source), itertools.count(number + 1), ids))
            counts = counts + sum(map(outputs.count, predictions))
            confidence += sum(prediction.confidence.mean() for prediction in predictions)
            milliseconds += sum(prediction.milliseconds for prediction in predictions)
            number += len(batch)
    row = outputs.row(source, size, [VIDEO, *[FRAMES] * outputs.frames], counts, confidence / number, number)
    row |= {"milliseconds": milliseconds / number, "num_frames": number, "frames_per_second": float(video.rate)}
    return PredictionEntry(row, counts)


def _ahead(
    function: Callable[[T], U],
    items: Iterable[T],
    count: int,
    threads: int = _THREADS,
    pixels: Callable[[T], int] = lambda item: 0,
) -> Iterator[tuple[T, U]]:
    """Yield each item with the function's result, in order; threads prefetch the results.

    Args:
      function: function to call.
      items: its arguments.
      count: maximum number of prefetched items.
      threads: number of threads.
      pixels: number of pixels of an item; at most `_MAX_PIXELS` are prefetched, or one larger item.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[tuple[T, int, Future[U]]] = deque()
        for item in items:
            size = pixels(item)
            while len(waiting) > count or waiting and size + sum(each[1] for each in waiting) > _MAX_PIXELS:
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
