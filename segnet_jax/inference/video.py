"""Read and write videos and read cameras with PyAV (extra `video`)."""

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
# Only formats that contain their own frames: FFmpeg would open the files and addresses named in a playlist.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v"
_READ_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_MIN_RATE, _MAX_RATE = Fraction(1, 100), Fraction(1000)  # plausible frame rates, frames per second


def load_av() -> Any:
    """Import and return PyAV.

    Raises:
      UserError: If PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"videos and cameras need PyAV; install it: {INSTALL}", kind="no-video-library") from None
    av.logging.set_level(None)  # errors are raised as UserError
    return av


class Video:
    """A video file opened for reading; a context manager that closes it.

    Args:
      path: path of the file.
      name: display name for error messages.

    Attributes:
      rate: frames per second.
      num_frames: number of frames according to the file's header; None if not stated.

    Raises:
      UserError: If the file cannot be read as a video, or its frames are too large.
    """

    def __init__(self, path: pathlib.Path, name: str):
        av = load_av()
        self._name, self._error = name, av.error.FFmpegError
        if not path.is_file():
            raise UserError(f"{name} is not a file", kind="not-a-file", file=name)
        try:
            self._container = av.open(os.fspath(path.absolute()), options=_READ_OPTIONS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._broken(error) from None
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{name} contains no video stream", kind="no-video", file=name)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        width, height = self._stream.width, self._stream.height
        if not 0 < width * height <= MAX_PIXELS:
            self._container.close()
            what = f"{name} has frames of {width} x {height} pixels, above the limit of {MAX_PIXELS // 10**6} million"
            raise UserError(what, kind="too-many-pixels", file=name)
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.rate = min(max(Fraction(rate), _MIN_RATE), _MAX_RATE)
        self.num_frames = self._stream.frames or None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self._container.close()

    def frames(self) -> Iterator[np.ndarray]:
        """Yield every frame, upright, uint8 [H,W,3] RGB, all of the same size.

        Raises:
          UserError: If the file is damaged, or the frame size changes.
        """
        size, number = None, 0
        try:
            for frame in self._container.decode(self._stream):
                turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4  # phones store rotation as metadata
                picture = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                size = size or picture.shape
                if picture.shape != size:
                    what = f"the frame size of {self._name} changes at frame {number + 1}"
                    raise UserError(what, kind="size-changes", file=self._name, fix="split the video there")
                yield picture
                number += 1
        except (self._error, OSError, ValueError) as error:
            raise self._broken(error, number) from None
        if not number:
            raise UserError(f"{self._name} contains no frames", kind="no-video", file=self._name)

    def _broken(self, error: Exception, number: int = 0) -> UserError:
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"is damaged after frame {number}" if number else "cannot be read as a video"
        what = f"{self._name} {problem}: {reason}"
        return UserError(what, kind="broken-data", file=self._name, fix="download or export it again, as .mp4")


class VideoWriter:
    """Write an H.264 video; a context manager that renames a temporary file on success and removes it on failure.

    Args:
      path: path of the file.
      rate: frames per second.
      size: height and width.
    """

    def __init__(self, path: pathlib.Path, rate: Fraction, size: tuple[int, int]):
        av = load_av()
        self._frame = av.VideoFrame.from_ndarray
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._container = av.open(os.fspath(self._temporary.absolute()), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        self._stream.height, self._stream.width = size
        # Most players support only chroma at half resolution, which needs even sizes.
        self._stream.pix_fmt = "yuv420p" if not size[0] % 2 and not size[1] % 2 else "yuv444p"

    def write(self, picture: np.ndarray) -> None:
        """Append a frame, uint8 [H,W,3] RGB."""
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
    """Read one frame of a camera, uint8 [H,W,3] RGB.

    Raises:
      UserError: If the camera does not exist, or the operating system is not supported.
    """
    av, name = load_av(), f"camera {number}"
    if sys.platform != "linux":
        raise UserError(
            f"{name} cannot be read: cameras are supported on Linux only; save a frame to a file", kind="no-camera"
        )
    if not os.path.exists(f"/dev/video{number}"):
        raise UserError(f"{name} does not exist: there is no /dev/video{number}", kind="no-camera", file=name)
    return _first_frame(av, f"/dev/video{number}", "v4l2", name)


def _first_frame(av: Any, device: str, driver: str, name: str) -> np.ndarray:
    try:
        with av.open(device, format=driver) as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError, ValueError, StopIteration, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{name} returns no image: {reason}", kind="no-camera", file=name) from None
