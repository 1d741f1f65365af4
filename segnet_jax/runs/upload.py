"""Upload a run to a bucket while it is trained, and when it ends: `--upload s3://BUCKET/PREFIX`.

A thread looks at times for new checkpoints, and uploads then what has changed; the training never waits for it. At its
end, it waits until all files are uploaded, but not for a bucket that no longer takes any. What could not be uploaded is
named in a warning at the end, and the run on the local disk is complete without it.
"""

import contextlib
import logging
import os
import pathlib
import stat
import threading
import uuid
from collections.abc import Iterator

from segnet_jax.reporting.background import Background
from segnet_jax.system.buckets import is_refusal, open_bucket, reason
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import relative_path
from segnet_jax.system.lock import LOCK_FILE
from segnet_jax.training.manifest import MANIFEST

logger = logging.getLogger(__name__)

_SECONDS = 10.0  # between two looks for new checkpoints
_PATIENCE = 300.0  # seconds that the end of a training waits for a file, or a part of one, to be uploaded


def check_upload(address: str) -> None:
    """Check that files can be written to a bucket, by an empty one, before a run is created; "" is none.

    Raises:
      UserError: If a package is missing, or the bucket does not exist or denies it. That it cannot be reached is a
        warning, as during the training.
    """
    if not address:
        return
    bucket, probe = open_bucket("--upload", address), f"{_root(address)}/.segnet_jax-{uuid.uuid4().hex}"
    try:
        bucket.pipe_file(probe, b"")
    except Exception as error:  # of the packages, which have no common base
        if is_refusal(error):
            raise UserError(f"--upload {address} cannot be written to: {reason(error)}") from None
        logger.warning(f"--upload {address} cannot be reached now ({reason(error)}): it is tried again later")
        return
    with contextlib.suppress(Exception):  # who may write may perhaps not delete
        bucket.rm_file(probe)


@contextlib.contextmanager
def uploading(folder: pathlib.Path, address: str, is_new: bool) -> Iterator[None]:
    """Upload a run folder to `address`/NAME during the context and at its end, however it ends; "" is none.

    Args:
      folder: the run folder.
      address: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.
      is_new: whether the run has just been created, so that the bucket must not contain one of its name.

    Raises:
      UserError: If the bucket contains another run of this name; at the start only.
    """
    if not address:
        yield
        return
    upload = Upload(folder, address)
    if is_new:
        upload.check_new()
    thread, ended = Background(), threading.Event()
    thread.start(lambda: upload.follow(ended))
    try:
        yield
    finally:
        ended.set()
        upload.wait(thread)
        upload.report()


class Upload:
    """The copy of a run in a bucket.

    Args:
      folder: the run folder.
      address: its copy is the folder of the same name below this address.
    """

    def __init__(self, folder: pathlib.Path, address: str):
        self._folder, self._bucket = folder, open_bucket("--upload", address)
        self._root, self._scheme = f"{_root(address)}/{folder.resolve().name}", address.partition("://")[0]
        self._done: dict[str, tuple[int, int]] = {}  # name -> size and time of change of what was uploaded
        self._left: list[str] = []
        self._why = ""
        from fsspec.callbacks import Callback  # open_bucket needs fsspec too

        self._progress = Callback()

    def check_new(self) -> None:
        """Check that the bucket contains no run of this name, unless it cannot be listed.

        Raises:
          UserError: If it does.
        """
        found = []
        with contextlib.suppress(Exception):  # who may write may perhaps not list
            found = self._bucket.find(self._root)
        if found:
            raise UserError(
                f"--upload: {self._address} already contains files: choose another prefix, or another --run"
            )

    @property
    def _address(self) -> str:
        return f"{self._scheme}://{self._root}"

    def follow(self, ended: threading.Event) -> None:
        """Upload after each new checkpoint, and once more when the training has ended; never raises an error."""
        before: set[str] = set()
        while not ended.wait(_SECONDS):
            found = {name for name in self._files() if name.endswith(f"/{MANIFEST}")}
            if found != before:
                self.sync()
                before = found
        self.sync()

    def wait(self, thread: Background) -> None:
        """Wait for the thread of `follow`, at most `_PATIENCE` seconds without any progress."""
        while thread.is_busy:
            before = self._progress.value
            thread.wait(_PATIENCE)
            if thread.is_busy and self._progress.value == before:
                files = self._files()
                self._left = sorted(name for name, about in files.items() if self._done.get(name) != about)
                self._why = f"nothing was uploaded for {_PATIENCE:.0f} seconds"
                return
        thread.wait()

    def sync(self) -> None:
        """Upload what is new or has changed, and delete there what this upload wrote and the run has deleted since."""
        files = self._files()
        changed = sorted(name for name, about in files.items() if self._done.get(name) != about)
        changed.sort(key=lambda name: name.endswith(MANIFEST))  # a checkpoint is complete once it has its manifest
        self._left, self._why = [], ""
        for place, name in enumerate(changed):
            try:
                self._bucket.put_file(str(self._folder / name), f"{self._root}/{name}", callback=self._progress)
                self._done[name] = files[name]
                self._progress.relative_update()
            except Exception as error:  # of the packages, which have no common base
                if (self._folder / name).exists():  # else an older checkpoint, deleted meanwhile
                    self._left, self._why = changed[place:], reason(error)
                    return
        for name in self._done.keys() - files.keys():
            with contextlib.suppress(Exception):  # who may write may perhaps not delete
                self._bucket.rm_file(f"{self._root}/{name}")
            del self._done[name]

    def report(self) -> None:
        """Log what is in the bucket, or warn of what is not."""
        if not self._left:
            logger.info(f"upload   {len(self._done)} files are in {self._address}")
            return
        logger.warning(
            f"{len(self._left)} files of {self._folder} were not uploaded to {self._address} ({self._why}): "
            f"{listed(self._left)}; the run itself is complete there on the disk, copy it by hand"
        )

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return the finished regular files of the run, without its lock: name -> size and time of change."""
        found = {}
        for path, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                file = pathlib.Path(path, name)
                with contextlib.suppress(OSError):  # deleted meanwhile
                    status = file.lstat()
                    if stat.S_ISREG(status.st_mode) and not name.startswith(".") and name != LOCK_FILE:
                        found[relative_path(file, self._folder)] = (status.st_size, status.st_mtime_ns)
        return found


def _root(address: str) -> str:
    """Return an address without its scheme, as fsspec takes it."""
    return address.partition("://")[2].rstrip("/")
