"""Videos and cameras, read and written by PyAV (the extra `video`), the only place that knows it."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from segnet_jax.data.images.picture_header import MAX_PIXELS
from segnet_jax.system.errors import UserError

INSTALL = 'pip install "segnet_jax[video]", or pip install av'
# Playlists and the like name other files and addresses, and FFmpeg would open these: only what holds its own frames.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v"
_READING = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_SLOWEST, _FASTEST = Fraction(1, 100), Fraction(1000)  # frames a second that are believed


def library() -> Any:
    """PyAV.

    Raises:
      UserError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"videos and cameras need PyAV: {INSTALL}", kind="no-video-library") from None
    av.logging.set_level(None)  # what is wrong is told in our own line
    return av


class Video:
    """A video file opened to be read; as a context it closes the file.

    Args:
      path: of the file.
      name: what messages call it.

    Attributes:
      rate: frames a second.
      num_frames: as the file says, or None where it does not.

    Raises:
      UserError: it cannot be read as a video, or its frames are too large.
    """

    def __init__(self, path: pathlib.Path, name: str):
        av = library()
        self._name, self._error = name, av.error.FFmpegError
        if not path.is_file():
            raise UserError(f"{name} is not a file", kind="not-a-file", file=name)
        try:
            self._container = av.open(os.fspath(path.absolute()), options=_READING)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._broken(error) from None
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{name} holds no video", kind="no-video", file=name)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        width, height = self._stream.width, self._stream.height
        if not 0 < width * height <= MAX_PIXELS:
            self._container.close()
            what = f"{name} has frames of {width} x {height} pixels, over the limit of {MAX_PIXELS // 10**6} million"
            raise UserError(what, kind="too-many-pixels", file=name)
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.rate = min(max(Fraction(rate), _SLOWEST), _FASTEST)
        self.num_frames = self._stream.frames or None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self._container.close()

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame, upright, uint8 [H,W,3] RGB, all of the first one's size.

        Raises:
          UserError: the file is damaged from some frame on, or its frames change their size.
        """
        size, number = None, 0
        try:
            for frame in self._container.decode(self._stream):
                turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4  # phones film lying and note how
                picture = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                size = size or picture.shape
                if picture.shape != size:
                    what = f"{self._name} changes its size at frame {number + 1}"
                    raise UserError(what, kind="size-changes", file=self._name, fix="cut it there")
                yield picture
                number += 1
        except (self._error, OSError, ValueError) as error:
            raise self._broken(error, number) from None
        if not number:
            raise UserError(f"{self._name} holds no frame", kind="no-video", file=self._name)

    def _broken(self, error: Exception, number: int = 0) -> UserError:
        told = getattr(error, "strerror", None) or str(error)
        where = f"is damaged after frame {number}" if number else "cannot be read as a video"
        what = f"{self._name} {where}: {told}"
        return UserError(what, kind="broken-data", file=self._name, fix="fetch or export it again, as .mp4")


class VideoWriter:
    """An H.264 video, written under a temporary name and renamed when it is whole; as a context, removed if it fails.

    Args:
      path: of the file.
      rate: frames a second.
      size: height and width.
    """

    def __init__(self, path: pathlib.Path, rate: Fraction, size: tuple[int, int]):
        av = library()
        self._frame = av.VideoFrame.from_ndarray
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._container = av.open(os.fspath(self._temporary.absolute()), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        self._stream.height, self._stream.width = size
        # Colours at half the resolution are what players know; an odd size has no half.
        self._stream.pix_fmt = "yuv420p" if not size[0] % 2 and not size[1] % 2 else "yuv444p"

    def write(self, picture: np.ndarray) -> None:
        """Appends a frame, uint8 [H,W,3] RGB."""
        self._container.mux(self._stream.encode(self._frame(picture, format="rgb24")))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                with open(self._temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._temporary, self._path)
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def camera_frame(number: int) -> np.ndarray:
    """One frame of a camera, uint8 [H,W,3] RGB.

    Raises:
      UserError: there is no such camera, or this system's are not known here.
    """
    av, name = library(), f"camera {number}"
    if sys.platform != "linux":
        raise UserError(f"{name}: cameras are read on Linux alone; save a frame and name the file", kind="no-camera")
    if not os.path.exists(f"/dev/video{number}"):
        raise UserError(f"no {name}: there is no /dev/video{number}", kind="no-camera", file=name)
    return _first_frame(av, f"/dev/video{number}", "v4l2", name)


def _first_frame(av: Any, device: str, driver: str, name: str) -> np.ndarray:
    try:
        with av.open(device, format=driver) as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError, ValueError, StopIteration, IndexError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{name} gives no picture: {why}", kind="no-camera", file=name) from None
