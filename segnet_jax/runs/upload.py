"""Upload a run to a bucket during training and at its end: `--upload s3://BUCKET/PREFIX`.

When there is a new checkpoint, a thread uploads all changed files, and training continues meanwhile. At its end,
training waits for the upload as long as that makes progress. A warning at the end lists files that could not be
uploaded; the local run is complete in any case.
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

_SECONDS = 10.0  # between two checks for new checkpoints
_PATIENCE = 300.0  # timeout at the end of training for a file, or a part of one, to be uploaded


def check_upload(address: str) -> None:
    """Check, by writing an empty file, that a bucket is writable; do nothing if the address is empty.

    A bucket that cannot be reached only causes a warning, as during training.

    Raises:
      UserError: If a package is missing, or the bucket does not exist or denies access.
    """
    if not address:
        return
    bucket, probe = open_bucket("--upload", address), f"{_root(address)}/.segnet_jax-{uuid.uuid4().hex}"
    try:
        bucket.pipe_file(probe, b"")
    except Exception as error:  # the packages' errors have no common base class
        if is_refusal(error):
            raise UserError(f"--upload {address} cannot be written to: {reason(error)}") from None
        logger.warning(f"--upload {address} cannot be reached ({reason(error)}); the upload is retried during training")
        return
    with contextlib.suppress(Exception):  # deleting may not be permitted
        bucket.rm_file(probe)


@contextlib.contextmanager
def uploading(folder: pathlib.Path, address: str, is_new: bool) -> Iterator[None]:
    """Upload a run folder to `address`/NAME inside the context and when it exits, also after an error.

    An empty address uploads nothing.

    Raises:
      UserError: If a new run's name is already in use in the bucket; raised on entry.
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
      address: parent of the copy, which has the run folder's name.
    """

    def __init__(self, folder: pathlib.Path, address: str):
        self._folder, self._bucket = folder, open_bucket("--upload", address)
        self._root, self._scheme = f"{_root(address)}/{folder.resolve().name}", address.partition("://")[0]
        self._done: dict[str, tuple[int, int]] = {}  # uploaded file -> size and modification time
        self._left: list[str] = []
        self._why = ""
        from fsspec.callbacks import Callback  # open_bucket needs fsspec too

        self._progress = Callback()

    def check_new(self) -> None:
        """Check that the bucket contains no run of this name; do nothing if it cannot be listed.

        Raises:
          UserError: If it contains such a run.
        """
        found = []
        with contextlib.suppress(Exception):  # listing may not be permitted
            found = self._bucket.find(self._root)
        if found:
            raise UserError(
                f"--upload: {self._address} already contains files: choose another prefix, or another --run"
            )

    @property
    def _address(self) -> str:
        return f"{self._scheme}://{self._root}"

    def follow(self, ended: threading.Event) -> None:
        """Upload after each new checkpoint, and again after `ended` is set; never raise an error."""
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
                self._left = self._changed(self._files())
                self._why = f"nothing was uploaded for {_PATIENCE:.0f} seconds"
                return
        thread.wait()

    def sync(self) -> None:
        """Upload new and changed files; delete uploaded files that no longer exist in the run folder."""
        files = self._files()
        changed = self._changed(files)
        changed.sort(key=lambda name: name.endswith(MANIFEST))  # last, since a manifest marks a complete checkpoint
        self._left, self._why = [], ""
        for place, name in enumerate(changed):
            try:
                self._bucket.put_file(str(self._folder / name), f"{self._root}/{name}", callback=self._progress)
                self._done[name] = files[name]
                self._progress.relative_update()
            except Exception as error:
                if (self._folder / name).exists():  # not deleted meanwhile with an older checkpoint
                    self._left, self._why = changed[place:], reason(error)
                    return
        for name in self._done.keys() - files.keys():
            with contextlib.suppress(Exception):
                self._bucket.rm_file(f"{self._root}/{name}")
            del self._done[name]

    def report(self) -> None:
        """Log the number of uploaded files, or warn about files that are missing in the bucket."""
        if not self._left:
            logger.info(f"upload   {len(self._done)} files are in {self._address}")
            return
        logger.warning(
            f"{len(self._left)} files of {self._folder} were not uploaded to {self._address} ({self._why}): "
            f"{listed(self._left)}; the local run folder is complete, so copy it yourself"
        )

    def _changed(self, files: dict[str, tuple[int, int]]) -> list[str]:
        """Return the names of the files that were not uploaded as they are now, sorted."""
        return sorted(name for name, about in files.items() if self._done.get(name) != about)

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return name -> (size, modification time) of the run's regular files, without temporary files and the lock."""
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
    """Return an address without its scheme, as fsspec expects it."""
    return address.partition("://")[2].rstrip("/")
