"""Test the values of `--init`: published weights or a path."""

import hashlib

import pytest

from segnet_jax.system.download import Resource
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder
from segnet_jax.weights import published


def test_a_path_is_used_unchanged_and_a_wrong_one_is_reported(tmp_path):
    (tmp_path / "my.h5").write_bytes(b"x")
    assert published.obtain(str(tmp_path / "my.h5")) == tmp_path / "my.h5"
    known = "a run, a file, vgg16, vgg16_bn, vgg19 or none"
    with pytest.raises(UserError, match=f"weight file vgg61 does not exist; --init accepts {known}"):
        published.obtain("vgg61")


def test_a_name_is_fetched_into_the_cache_once(tmp_path, monkeypatch):
    content = b"\x89HDF\r\n\x1a\n and more"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "w.h5").write_bytes(content)
    resource = Resource("w.h5", ((tmp_path / "there" / "w.h5").as_uri(),), "hdf5", md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(published.PUBLISHED, "vgg16", resource)
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    assert published.obtain("vgg16") == tmp_path / "cache" / "w.h5"
    (tmp_path / "there" / "w.h5").unlink()
    assert published.obtain("vgg16").read_bytes() == content


def test_without_the_file_the_error_says_where_to_get_it_and_how_to_pass_it(tmp_path, monkeypatch):
    absent = (tmp_path / "absent.h5").as_uri()
    hint = published.PUBLISHED["vgg16"].hint
    monkeypatch.setitem(published.PUBLISHED, "vgg16", Resource("w.h5", (absent,), "hdf5", md5="0" * 32, hint=hint))
    with pytest.raises(UserError) as caught:
        published.obtain("vgg16", tmp_path)
    message = str(caught.value)
    assert "w.h5" in message and absent in message and "--init FILE" in message and "\n" not in message


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_every_published_file_is_pinned_and_comes_by_a_protected_address(name):
    resource = published.PUBLISHED[name]
    assert resource.sums and all(len(value) in (32, 64) for value in resource.sums.values())
    assert isinstance(resource.num_bytes, int) and "--init" in resource.hint
    assert all(url.startswith("https://") and url.endswith(resource.filename) for url in resource.urls)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("SEGNET_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "segnet_jax"
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
