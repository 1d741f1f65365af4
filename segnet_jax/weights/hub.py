"""Networks in repositories on the Hugging Face Hub, named hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

`huggingface_hub` keeps a cache of links and downloads whatever a repository contains. Here only the files that `export`
writes are fetched, after a check of their sizes, and copied to a plain folder without links, which is then read like
any other folder of somebody else.
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
"""The file that makes a folder or repository a network; `export --format safetensors` writes it."""

_MAX_BYTES = {NETWORK_FILE: 2_000_000_000, "README.md": 1_000_000}
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})"
    r"(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,199}))?"
)


def is_repository(source: str) -> bool:
    """Return whether a source of a network names a repository on the Hub rather than a path."""
    return source.startswith(PREFIX)


def fetch_repository(source: str) -> Path:
    """Download a network and its card, unless cached, and return a plain folder that contains them.

    The Hub is that of $HF_ENDPOINT. Without a connection, the files of the last download are used.

    Args:
      source: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION for a branch, tag or commit.

    Raises:
      UserError: If the name is invalid, `huggingface_hub` is not installed, or the repository or its network does not
        exist, cannot be downloaded, or is too large.
    """
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None:
        raise UserError(
            f"a repository on the Hub is named {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got {source}"
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
                    message = f"{source} contains no {NETWORK_FILE}, which `export --format safetensors` writes"
                    raise UserError(message) from None
        return _copy(files, target / files[NETWORK_FILE].parent.name)
    except UserError:
        raise
    except Exception as error:  # of the HTTP library, which depends on the version of huggingface_hub
        raise UserError(f"cannot download {source}: {_reason(error)}") from error


def _download(name: str, folder: Path, is_connected: bool, repository: str, revision: str | None) -> Path:
    """Download a file into a cache of the library; return its path there."""
    from huggingface_hub import hf_hub_download

    settings = {"cache_dir": folder, "local_files_only": not is_connected, "endpoint": _endpoint()}
    return Path(hf_hub_download(repository, name, revision=revision, **settings))


def _check_size(source: str, name: str, repository: str, revision: str | None) -> bool:
    """Refuse a file that is too large before it is downloaded; return whether the Hub can be reached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    url, limit = hf_hub_url(repository, name, revision=revision, endpoint=_endpoint()), _MAX_BYTES[name]
    try:
        size = get_hf_file_metadata(url, endpoint=_endpoint()).size
    except (EntryNotFoundError, HfHubHTTPError):
        raise
    except Exception as error:  # as above
        logger.warning(f"{source}: the Hub cannot be reached ({_reason(error)}); looking for an earlier download")
        return False
    if size is None:
        raise UserError(f"the Hub does not state the size of {name} in {source}; download it and name its folder")
    if size > limit:
        raise UserError(f"{name} of {source} has {size} bytes, above the limit of {limit} bytes for downloads")
    return True


def _endpoint() -> str | None:
    """Return the address of another Hub, which the library itself reads only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _copy(files: dict[str, Path], folder: Path) -> Path:
    """Copy files, which may be links into a cache, to a new folder; return it. An existing folder is complete."""
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            for name, path in files.items():
                real = Path(os.path.realpath(path))
                if real.stat().st_size > _MAX_BYTES[name]:
                    raise UserError(f"{name} has {real.stat().st_size} bytes, and at most {_MAX_BYTES[name]} are read")
                shutil.copyfile(real, made / name)
            if not folder.is_dir():
                os.replace(made, folder)
    return folder


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, in one line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
