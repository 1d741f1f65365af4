"""Test training from a bucket and uploading to one; failed uploads are named and do not stop training."""

import threading
import time

import pytest
from bucket_servers import client, refusing, s3_server, set_server
from made_runs import make_run
from planted_faults import make_valid_folder

import segnet_jax
from segnet_jax.runs import upload
from segnet_jax.runs.upload import Upload, check_upload, uploading
from segnet_jax.system import buckets
from segnet_jax.system.errors import UserError

TINY = {"protocol": "scratch", "image_size": (24, 32), "depth": 1, "width": 1 / 16, "devices": "1", "steps": 0}
TINY |= {"epochs": 2, "batch_size_per_device": 1, "class_weights": "none", "schedule": "constant", "warmup_epochs": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    buckets._local_copy.cache_clear()


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects_of(s3, prefix):
    """Return the objects below a prefix, read with S3's own client."""
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket="street", Prefix=prefix).get("Contents", [])]
    return {key.removeprefix(prefix): s3.get_object(Bucket="street", Key=key)["Body"].read() for key in keys}


@pytest.mark.slow
def test_a_network_is_trained_from_a_bucket_uploaded_loaded_and_started_from(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "_SECONDS", 0.05)
    with s3_server() as url:
        set_server(monkeypatch, url)
        s3 = client(url)
        for name, data in files_of(make_valid_folder(tmp_path / "photos")).items():
            s3.put_object(Bucket="street", Key=f"photos/{name}", Body=data)
        run = segnet_jax.train(data="s3://street/photos", run="run", upload="s3://street/runs", **TINY, init="none")
        local = files_of(run.folder)
        there = objects_of(s3, "runs/run/")
        assert there.keys() == local.keys() - {"lock"}
        assert all(local[name] == data for name, data in there.items() if name != "train.log")
        assert local["train.log"].startswith(there["train.log"])  # its last line says what was uploaded
        assert {"config.toml", "result.json", "report.html", "outcome.json"} <= local.keys()
        assert not objects_of(s3, "runs/.")  # the file that tried whether the bucket can be written to
        assert not any(b"HIDDEN" in data or b"verysecret" in data for data in local.values())
        assert b"street/runs" not in local["config.toml"]  # an address to write to is not stored
        same = segnet_jax.train(data=str(tmp_path / "photos"), run="local", **TINY, init="none")
        assert same.scores.iou == run.scores.iou  # as from the folder itself
        network, own = segnet_jax.load("s3://street/runs/run"), segnet_jax.load(run.folder)
        image = min((tmp_path / "photos" / "images").iterdir())
        assert (network.predict(str(image)) == own.predict(str(image))).all()
        started = segnet_jax.train(
            data="s3://street/photos", run="next", **TINY | {"epochs": 1}, init="s3://street/runs/run"
        )
        assert started.scores is not None


def test_checkpoints_are_uploaded_in_between_and_those_deleted_are_deleted_there(tmp_path, monkeypatch, logged):
    run = make_run(tmp_path / "run")
    (run / "lock").write_text("{}")
    (run / "checkpoints" / ".9.partial").mkdir()
    (run / "checkpoints" / ".9.partial" / "x").write_text("unfinished")
    with s3_server() as url:
        set_server(monkeypatch, url)
        s3 = client(url)
        s3.put_object(Bucket="street", Key="runs/run/other", Body=b"of somebody else")
        with pytest.raises(UserError, match="s3://street/runs/run already contains files: choose another prefix"):
            with uploading(run, "s3://street/runs", is_new=True):
                pass
        one = Upload(run, "s3://street/runs/")
        one.sync()
        expected = {name: data for name, data in files_of(run).items() if name != "lock" and "/." not in name}
        assert objects_of(s3, "runs/run/") == expected | {"other": b"of somebody else"}
        gone = next(name for name in expected if name.startswith("checkpoints/newest/8/"))
        (run / gone).unlink()
        (run / "config.toml").write_text("changed")
        ended = threading.Event()
        ended.set()
        one.follow(ended)
        one.report()
        now = objects_of(s3, "runs/run/")
        assert gone not in now and now["config.toml"] == b"changed" and now["other"] == b"of somebody else"
    assert logged[-1] == f"upload   {len(expected) - 1} files are in s3://street/runs/run"


def test_a_failed_upload_is_a_warning_that_names_what_is_missing(tmp_path, monkeypatch, logged):
    run = make_run(tmp_path / "run")
    with refusing(may_put=lambda path: "checkpoints" not in path) as (url, put):
        set_server(monkeypatch, url)
        check_upload("s3://street/runs")
        with uploading(run, "s3://street/runs", is_new=True):
            pass
    assert any(path.startswith("/street/runs/.segnet_jax-") for path in put)
    assert "files of" in logged[-1] and "were not uploaded to s3://street/runs/run (access is denied" in logged[-1]
    assert "checkpoints/best/7/" in logged[-1] and "HIDDEN" not in logged[-1] and "\n" not in logged[-1]


class HangingBucket:
    """A bucket that stops to answer after some files; `goes_on` lets it answer again."""

    def __init__(self, num_files):
        self.put, self.num_files, self.goes_on = [], num_files, threading.Event()

    def put_file(self, path, there, callback):
        if len(self.put) >= self.num_files:
            self.goes_on.wait(60)
        self.put.append(there)

    def find(self, root):
        return []


def test_the_end_of_a_training_waits_for_a_hanging_bucket_for_a_limited_time(tmp_path, monkeypatch, logged):
    run, bucket = make_run(tmp_path / "run"), HangingBucket(2)
    monkeypatch.setattr(upload, "open_bucket", lambda *_: bucket)
    monkeypatch.setattr(upload, "_PATIENCE", 0.2)
    start = time.monotonic()
    with uploading(run, "s3://street/runs", is_new=True):
        pass
    assert time.monotonic() - start < 30 and len(bucket.put) == 2
    assert f"{len(files_of(run)) - 2} files of {run} were not uploaded to s3://street/runs/run" in logged[-1]
    assert "(nothing was uploaded for 0 seconds)" in logged[-1] and "the local run folder is complete" in logged[-1]
    bucket.goes_on.set()


def test_the_end_of_a_training_waits_for_a_slow_bucket_that_takes_its_files(tmp_path, monkeypatch, logged):
    run, bucket = make_run(tmp_path / "run"), HangingBucket(10**6)
    put = bucket.put_file
    monkeypatch.setattr(bucket, "put_file", lambda *args, callback: (time.sleep(0.1), put(*args, callback=callback)))
    monkeypatch.setattr(upload, "open_bucket", lambda *_: bucket)
    monkeypatch.setattr(upload, "_PATIENCE", 1.0)  # less than all files take
    with uploading(run, "s3://street/runs", is_new=True):
        pass
    assert len(bucket.put) == len(files_of(run)) > 12
    assert logged[-1] == f"upload   {len(bucket.put)} files are in s3://street/runs/run"


def test_a_bucket_that_denies_or_does_not_exist_is_refused_before_the_run_is_created(tmp_path, monkeypatch):
    with refusing() as (url, _):
        set_server(monkeypatch, url)
        with pytest.raises(UserError, match="--upload s3://street/runs cannot be written to: access is denied"):
            segnet_jax.train(data="synthetic", run="run", upload="s3://street/runs", init="none")
    with s3_server() as url:
        set_server(monkeypatch, url)
        with pytest.raises(UserError, match="--upload s3://none/runs cannot be written to: there is no such bucket"):
            check_upload("s3://none/runs")
    assert not (tmp_path / "run").exists()
