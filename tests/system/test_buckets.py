"""Test folders in buckets: copied once, used again without a connection, never outside the copy; moto is the server."""

import pytest
from bucket_servers import client, refusing, s3_server, set_server

from segnet_jax.config.fields import Config
from segnet_jax.data.camvid.find_folder import camvid_folder
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.runs.default_recipe import is_own_folder
from segnet_jax.runs.initialization import read_initial
from segnet_jax.system import buckets
from segnet_jax.system.bucket_address import PACKAGES, is_file_name
from segnet_jax.system.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    buckets._local_copy.cache_clear()


def copied(address):
    """Return the copy that a separate command would use."""
    buckets._local_copy.cache_clear()
    return buckets.local_copy("--data", address)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket/x", "got s4://; nearest: s3://"),
        ("gcs://bucket/x", "got gcs://; nearest: gs://"),
        ("http://host/x", "--data takes a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, got http://$"),
        ("s3://", "without credentials"),
        ("s3://bucket/a/../b", "without credentials, queries, patterns or empty"),
        ("s3://bucket/a//b", "empty path components"),
        ("s3://bucket/a*", "patterns"),
        ("s3://bucket/a?X-Amz-Signature=hidden", "queries"),
        ("s3://AKIA:hidden@bucket/a", "without credentials"),
    ],
)
@pytest.mark.parametrize("field", ["data", "init", "upload"])
def test_a_wrong_address_is_refused_before_anything_starts_and_no_credential_is_repeated(field, address, message):
    with pytest.raises(UserError, match=message.replace("--data", f"--{field}")) as caught:
        Config(**{field: address})
    assert "hidden" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_upload_is_a_bucket_and_a_run_is_a_local_folder():
    with pytest.raises(UserError, match="--upload takes a bucket as .* got a path"):
        Config(upload="runs/copy")
    with pytest.raises(
        UserError, match="--run must be a local folder, not an address: name a folder, and add --upload s3://"
    ):
        Config(run="s3://bucket/run")
    assert "upload" not in Config(upload="s3://bucket/runs").to_toml()  # not stored


def test_names_that_are_no_files_of_a_folder():
    assert all(map(is_file_name, ["a", "a/b.png", "a b/ü.png", ".hidden"]))
    wrong = ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb", "a\0", "x" * 256, "/".join("a" * 40)]
    assert not any(map(is_file_name, wrong))


def test_a_missing_package_is_named_with_its_command(cache, monkeypatch):
    pytest.importorskip("fsspec")
    import fsspec

    def missing(scheme):
        raise ImportError

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    for scheme, package in PACKAGES.items():
        with pytest.raises(UserError, match=f"needs the package {package}, .* pip install {package}$"):
            copied(f"{scheme}://bucket/x")


def test_objects_with_harmful_names_or_beyond_the_limits_are_refused(monkeypatch):
    def check(*names, size=1):
        return buckets._checked("--data s3://b/x", {name: (size, "e") for name in names})

    assert set(check("a/b", "a/c")) == {"a/b", "a/c"}
    for names in (("../a",), ("a/../../b",), ("/etc/x",), ("a", "a/b")):
        with pytest.raises(UserError, match="not a valid file name"):
            check(*names)
    with pytest.raises(UserError, match="1 objects .* over the limit of .*: name a longer prefix"):
        check("a", size=buckets.MOST_BYTES + 1)
    monkeypatch.setattr(buckets, "MOST_OBJECTS", 1)
    with pytest.raises(UserError, match="2 objects"):
        check("a", "b")


# ---------------------------------------------------------------------------------------------------------------------
# With a server
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_folder_is_copied_once_followed_when_it_changes_and_used_without_a_connection(cache, monkeypatch, logged):
    pytest.importorskip("s3fs", reason="pip install s3fs 'moto[server]' runs this test")
    monkeypatch.setattr(buckets, "_PART", 1000)
    with s3_server() as url:
        set_server(monkeypatch, url)
        s3 = client(url)
        files = {"images/a.png": bytes(range(256)) * 10, "images/empty.txt": b"", "labels/deep/b.png": b"b" * 1000}
        for name, data in files.items():
            s3.put_object(Bucket="street", Key=f"data/{name}", Body=data)
        s3.put_object(Bucket="street", Key="data/images/", Body=b"")  # a folder in a console
        s3.put_object(Bucket="street", Key="data-other/c.png", Body=b"beside the prefix")
        folder = copied("s3://street/data/")
        assert contents(folder) == files and cache in folder.parents
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert copied("s3://street/data") == folder
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before  # nothing was copied again
        (folder / "labels/deep/b.png").write_bytes(b"cut")
        assert contents(copied("s3://street/data")) == files  # a damaged copy is repaired
        assert copied("s3://street/data/labels/deep/b.png").read_bytes() == b"b" * 1000
        s3.put_object(Bucket="street", Key="data/images/a.png", Body=b"A" * 2560)  # of the same size
        changed = copied("s3://street/data")
        assert contents(changed) == files | {"images/a.png": b"A" * 2560} and changed != folder
        for address in ("s3://street/none", "s3://other/data"):
            with pytest.raises(UserError, match=f"--data {address} cannot be read: there is no such bucket or object$"):
                copied(address)
        s3.put_object(Bucket="street", Key="bad/../../x", Body=b"x")
        with pytest.raises(UserError, match="not a valid file name"):
            copied("s3://street/bad")
        monkeypatch.setattr(buckets.shutil, "disk_usage", lambda _: type("", (), {"free": 10}))
        with pytest.raises(UserError, match="the copy of s3://street/data/images needs .* free"):
            copied("s3://street/data/images")
    assert not (cache / "x").exists() and not (cache.parent / "x").exists()
    set_server(monkeypatch, "http://127.0.0.1:9")
    assert copied("s3://street/data") == changed  # the server has gone
    assert "cannot be reached" in logged[-1] and "its last copy is used" in logged[-1]
    with pytest.raises(UserError, match="--data s3://street/fresh cannot be read") as caught:
        copied("s3://street/fresh")
    assert "HIDDEN" not in f"{caught.value}{logged}" and "secret" not in f"{caught.value}{logged}"


@pytest.mark.slow
def test_a_copy_that_was_interrupted_is_completed_without_copying_its_files_again(cache, monkeypatch):
    pytest.importorskip("s3fs", reason="pip install s3fs 'moto[server]' runs this test")
    with s3_server() as url:
        set_server(monkeypatch, url)
        s3 = client(url)
        for index in range(6):
            s3.put_object(Bucket="street", Key=f"data/{index}.png", Body=b"%d" % index)
        fetch, fetched = buckets._fetch, []

        def failing(bucket, path, *args):
            fetched.append(path)
            if path.endswith("3.png") and fetched.count(path) == 1:
                raise ConnectionError("reset by peer")
            fetch(bucket, path, *args)

        monkeypatch.setattr(buckets, "_fetch", failing)
        monkeypatch.setattr(buckets, "_THREADS", 1)
        with pytest.raises(UserError, match="cannot be read: reset by peer"):
            copied("s3://street/data")
        assert len(contents(copied("s3://street/data"))) == 6
        assert all(fetched.count(f"street/data/{index}.png") == 1 for index in range(3))


def test_a_bucket_that_denies_is_one_line(cache, monkeypatch):
    pytest.importorskip("s3fs", reason="pip install s3fs 'moto[server]' runs this test")
    with refusing() as (url, _):
        set_server(monkeypatch, url)
        with pytest.raises(
            UserError, match="--data s3://street/data cannot be read: access is denied; check"
        ) as caught:
            copied("s3://street/data")
    assert "\n" not in str(caught.value) and "HIDDEN" not in str(caught.value)


def test_a_stored_address_is_not_read_unless_the_command_names_it():
    """Check that an untrusted run's config cannot make a command connect with the user's credentials."""
    with pytest.raises(UserError, match="read only if this command names it: add --data s3://street/never-named"):
        camvid_folder("s3://street/never-named")
    with pytest.raises(UserError, match="read only if this command names it: add --data s3://street/never-named"):
        is_own_folder("s3://street/never-named")
    for address in ("s3://street/never-named", "hf://someone/never-named"):
        with pytest.raises(UserError, match=f"read only if this command names it: add --init {address}"):
            read_initial(Config(data="synthetic", init=address), choose_devices("1"))
