"""Download networks from the Hugging Face Hub, named hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

Only the files that `export` writes are downloaded, after a check of their sizes, and copied from the link-based cache
of `huggingface_hub` to a plain folder, which is then read like any other untrusted folder.
"""

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder

logger = logging.getLogger(__name__)

PREFIX = "hf://"
NETWORK_FILE = "network.safetensors"
"""The file of an exported network in a folder or repository, written by `export --format safetensors`."""

_MAX_BYTES = {NETWORK_FILE: 2_000_000_000, "README.md": 1_000_000}
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})"
    r"(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,199}))?"
)


def is_repository(source: str) -> bool:
    """Return whether the source of a network is a Hub repository rather than a path."""
    return source.startswith(PREFIX)


def fetch_repository(source: str) -> Path:
    """Download a network and its model card, unless cached, and return the folder that contains them.

    $HF_ENDPOINT selects another Hub. Without a connection, the files of the last download are used. REVISION is a
    branch, tag or commit.

    Raises:
      UserError: If the name is invalid, `huggingface_hub` is not installed, or the repository or its network does not
        exist, cannot be downloaded, or is too large.
    """
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None:
        raise UserError(
            f"a Hub repository must be named {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got {source}"
        )
    try:
        from huggingface_hub import errors
    except ImportError:
        raise UserError(f'{source} needs huggingface_hub, which is not installed: pip install -e ".[hub]"') from None
    where = {"repository": match["repository"], "revision": match["revision"]}
    target = cache_folder() / "hub" / match["repository"].replace("/", "--")
    files: dict[str, Path] = {}
    is_connected = True
    try:
        for name in _MAX_BYTES:
            try:
                is_connected = is_connected and _check_size(source, name, **where)
                files[name] = _download(name, target / "downloads", is_connected, **where)
            except errors.LocalEntryNotFoundError:  # there is no connection
                if name == NETWORK_FILE:
                    message = f"cannot download {source}: the Hub cannot be reached, and there is no earlier download"
                    raise UserError(message) from None
            except errors.EntryNotFoundError:
                if name == NETWORK_FILE:
                    message = f"{source} contains no {NETWORK_FILE}; write it with `export --format safetensors`"
                    raise UserError(message) from None
        return _copy(files, target / files[NETWORK_FILE].parent.name)
    except UserError:
        raise
    except Exception as error:  # the HTTP library, and so its errors, depend on the version of huggingface_hub
        raise UserError(f"cannot download {source}: {_reason(error)}") from error


def _download(name: str, folder: Path, is_connected: bool, repository: str, revision: str | None) -> Path:
    """Download a file into a huggingface_hub cache, unless cached, and return its path."""
    from huggingface_hub import hf_hub_download

    settings = {"cache_dir": folder, "local_files_only": not is_connected, "endpoint": _endpoint()}
    return Path(hf_hub_download(repository, name, revision=revision, **settings))


def _check_size(source: str, name: str, repository: str, revision: str | None) -> bool:
    """Raise UserError if a file is too large to download; return whether the Hub can be reached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    url, limit = hf_hub_url(repository, name, revision=revision, endpoint=_endpoint()), _MAX_BYTES[name]
    try:
        size = get_hf_file_metadata(url, endpoint=_endpoint()).size
    except (EntryNotFoundError, HfHubHTTPError):
        raise
    except Exception as error:  # see `fetch_repository`
        logger.warning(f"{source}: the Hub cannot be reached ({_reason(error)}); looking for an earlier download")
        return False
    if size is None:
        raise UserError(f"the Hub does not report the size of {name} in {source}; download it and pass its folder")
    if size > limit:
        raise UserError(f"{name} of {source} is {size} bytes, over the limit of {limit} bytes for downloads")
    return True


def _endpoint() -> str | None:
    """Return $HF_ENDPOINT or None; huggingface_hub itself reads the variable only when imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _copy(files: dict[str, Path], folder: Path) -> Path:
    """Copy files, which may be links into a cache, to a folder unless it exists; return the folder."""
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder.parent) as temporary:
            complete = Path(temporary) / folder.name
            complete.mkdir()
            for name, path in files.items():
                real = Path(os.path.realpath(path))
                if real.stat().st_size > _MAX_BYTES[name]:
                    raise UserError(
                        f"{name} is {real.stat().st_size} bytes, over the limit of {_MAX_BYTES[name]} bytes"
                    )
                shutil.copyfile(real, complete / name)
            if not folder.is_dir():
                os.replace(complete, folder)
    return folder


def _reason(error: Exception) -> str:
    """Return the first line of an error's message that is not empty, or the error's type."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
