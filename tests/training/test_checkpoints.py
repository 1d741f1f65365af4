"""Test checkpoints: damage is detected, set aside and logged; older ones stay until the new one is read back."""

import errno
import hashlib
import json
import os
import pathlib
import random
import shutil
import threading
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from segnet_jax.distributed.data_parallel import choose_devices, replicate
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.errors import DiskFailed, DiskFull, NoCheckpoint, UserError
from segnet_jax.system.signals import Stop
from segnet_jax.training import checkpoints as module
from segnet_jax.training import manifest as training_manifest
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.manifest import Damaged, finalize, verify
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.state import create_state, init_variables, sum_of_state


@pytest.fixture(scope="module")
def state():
    model = SegNet(3, depth=1, width=0.125)
    variables = init_variables(model, seed=0)
    optimizer, _ = build_optimizer(OptimizerSettings(), model, 5)
    return replicate(create_state(variables, optimizer, "float32"), choose_devices("2"))


def at(state, step):
    """Return the state after `step` more steps, with changed parameters and momentum."""
    changed = jax.tree.map(lambda leaf: leaf + np.asarray(step, leaf.dtype), (state.params, state.opt_state))
    return state.replace(params=changed[0], opt_state=changed[1], step=state.step + np.int32(step))


def opened(folder, **settings):
    return Checkpoints(folder, choose_devices("2"), **settings)


@pytest.fixture(scope="module")
def two_saved(state, tmp_path_factory):
    """Save checkpoints of steps 1 and 2; return their folder."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with opened(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save("newest", step, at(state, step), {"best": None})
    return folder


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(data, random):
    place = random.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


DAMAGES = {
    "flip a bit": flip,
    "truncate": lambda data, random: data[: random.randrange(len(data))],
    "zero": lambda data, random: bytes(len(data)),
    "delete": lambda data, random: None,
}


def damage(path, how, random):
    data = how(path.read_bytes(), random)
    path.unlink()
    if data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damaged_file_of_a_checkpoint_is_found_and_the_older_one_used(two_saved, tmp_path, state, name, logged):
    inside = [path.relative_to(two_saved / "newest" / "2") for path in files_of(two_saved / "newest" / "2")]
    assert {"manifest.json", "meta.json"} <= {path.name for path in inside} and len(inside) > 8
    for number, file in enumerate(inside):
        folder = tmp_path / str(number)
        shutil.copytree(two_saved, folder)
        damage(folder / "newest" / "2" / file, DAMAGES[name], random.Random(number))
        logged.clear()
        with opened(folder) as checkpoints:
            assert checkpoints.latest("newest") == 1, file
        assert (
            len(logged) == 2 and "checkpoint of step 2 is damaged" in logged[0] and "of step 1 instead" in logged[1]
        ), logged
        assert (folder / "damaged" / "newest-2").is_dir() and not (folder / "newest" / "2").exists()
        shutil.rmtree(folder)


def test_two_hundred_flipped_bits_in_the_arrays_are_all_found(two_saved, tmp_path):
    generator = random.Random(0)
    arrays = [path for path in files_of(two_saved / "newest" / "2" / "state") if "/d/" in path.as_posix()]
    sizes = [path.stat().st_size for path in arrays]
    for _ in range(200):
        folder = tmp_path / "one"
        shutil.copytree(two_saved / "newest" / "2", folder)
        path = generator.choices(arrays, weights=sizes)[0]  # each byte alike
        damage(folder / path.relative_to(two_saved / "newest" / "2"), flip, generator)
        with pytest.raises(Damaged, match="does not match"):
            verify(folder)
        shutil.rmtree(folder)


def test_orbax_alone_restores_flipped_weights_without_a_word(two_saved, tmp_path):
    """Check that our checksums are needed: this test fails once Orbax detects damage, and they can then be removed."""
    generator, unnoticed = random.Random(1), 0
    for number in range(20):
        folder = tmp_path / str(number)
        shutil.copytree(two_saved / "newest" / "2" / "state", folder)
        largest = max(files_of(folder), key=lambda path: path.stat().st_size * ("/d/" in path.as_posix()))
        damage(largest, flip, generator)
        try:
            ocp.PyTreeCheckpointer().restore(folder)
            unnoticed += 1
        except Exception:
            pass
    assert unnoticed > 0


def test_a_restored_state_is_the_saved_one_on_other_devices_too(two_saved, state):
    expected = sum_of_state(jax.device_get(at(state, 2)))
    assert verify(two_saved / "newest" / "2")["state"] == expected
    for devices in ("1", "8"):
        with Checkpoints(two_saved, choose_devices(devices)) as checkpoints:
            restored = checkpoints.restore("newest", checkpoints.latest("newest"), jax.eval_shape(lambda: state))
        assert sum_of_state(jax.device_get(restored)) == expected


def test_without_an_intact_checkpoint_training_does_not_start_over(two_saved, tmp_path, logged):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_saved, folder)
    for step in (1, 2):
        damage(folder / "newest" / str(step) / "meta.json", DAMAGES["zero"], random.Random(0))
    for _ in range(2):  # also the second time, when all are set aside
        with opened(folder) as checkpoints, pytest.raises(NoCheckpoint, match="no intact newest checkpoint in"):
            checkpoints.latest("newest")
    shutil.rmtree(folder / "damaged")  # and after they were removed
    with opened(folder) as checkpoints, pytest.raises(NoCheckpoint):
        checkpoints.latest("newest")


def test_a_deleted_checkpoint_is_noticed(two_saved, tmp_path, logged):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_saved, folder)
    shutil.rmtree(folder / "newest" / "2")
    with opened(folder) as checkpoints:
        assert checkpoints.latest("newest") == 1
    assert logged == [
        "warning: the newest checkpoint of step 2 is missing",
        "using the newest checkpoint of step 1 instead",
    ]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_checkpoint_is_logged_and_the_older_one_used(two_saved, tmp_path, monkeypatch, number, logged):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_saved, folder)
    check = verify

    def refuse(place, *limits):
        if place.name == "2":
            raise OSError(number, os.strerror(number))
        return check(place, *limits)

    with opened(folder) as checkpoints:
        monkeypatch.setattr("segnet_jax.training.checkpoint_folders.verify", refuse)
        assert checkpoints.latest("newest") == 1
        assert logged == [
            f"warning: the newest checkpoint of step 2 cannot be read: {os.strerror(number)}",
            "using the newest checkpoint of step 1 instead",
        ]
        assert checkpoints.folders.steps("newest") == [1, 2]  # readers move nothing
        checkpoints.folders.delete_after(1)
    assert checkpoints.folders.steps("newest") == [1] and check(folder / "damaged" / "newest-2")["step"] == 2


def test_without_saved_checkpoints_there_is_none(tmp_path):
    with opened(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest("newest") is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_newer_format_is_neither_read_nor_set_aside(two_saved, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints" / "newest"
    shutil.copytree(two_saved / "newest" / "2", folder / "3.partial")
    (folder / "3.partial" / "manifest.json").unlink()
    with monkeypatch.context() as newer:
        newer.setattr("segnet_jax.training.manifest.VERSION", 2)
        finalize(folder / "3.partial", folder / "3", {})
    with (
        opened(folder.parent) as checkpoints,
        pytest.raises(UserError, match="has format 2, but this version of segnet_jax reads 1"),
    ):
        checkpoints.latest("newest")
    assert (folder / "3").is_dir()


def test_the_newest_few_and_the_best_checkpoints_they_refer_to_are_kept(state, tmp_path):
    with opened(tmp_path, keep=2) as checkpoints:
        for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 5)):
            if step == best:
                checkpoints.save("best", step, at(state, step), {"best": {"step": best}})
            checkpoints.save("newest", step, at(state, step), {"best": {"step": best}})
            checkpoints.wait()
        shelf = checkpoints.folders
        assert (shelf.steps("newest"), shelf.steps("best")) == ([4, 5], [3, 5])
        shelf.delete_after(4)  # as if step 5 were damaged: the best checkpoint according to step 4 still exists
        assert (shelf.steps("newest"), shelf.steps("best")) == ([4], [3])


def saved_twice(folder, state, names=("best", "newest"), step=3):
    """Save one state under both names; return how often Orbax wrote."""
    with opened(folder) as checkpoints:
        write, times = checkpoints._writer.save, []
        checkpoints._writer.save = lambda *args, **settings: times.append(1) or write(*args, **settings)
        for name in names:
            checkpoints.save(name, step, at(state, step), {"of": name, "best": {"step": step}})
        checkpoints.wait()
        return checkpoints, len(times)


@pytest.mark.parametrize("names", [("best", "newest"), ("newest", "best")])
def test_a_step_that_is_newest_and_best_is_written_once_and_complete_under_either_name(state, tmp_path, names):
    checkpoints, times = saved_twice(tmp_path, state, names)
    places = [checkpoints.folders.path(name, 3) for name in names]
    assert times == 1 and [json.loads((place / "meta.json").read_text())["of"] for place in places] == list(names)
    assert {verify(place)["state"] for place in places} == {sum_of_state(jax.device_get(at(state, 3)))}
    arrays = [path.relative_to(places[0]) for path in files_of(places[0] / "state")]
    assert len(arrays) > 5 and all((places[0] / name).samefile(places[1] / name) for name in arrays)
    shutil.rmtree(places[0])
    with opened(tmp_path) as checkpoints:
        restored = checkpoints.restore(names[1], checkpoints.latest(names[1]), jax.eval_shape(lambda: state))
    assert sum_of_state(jax.device_get(restored)) == sum_of_state(jax.device_get(at(state, 3)))


def test_on_a_disk_without_links_the_second_name_has_copies(state, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    checkpoints, times = saved_twice(tmp_path, state)
    best, newest = (checkpoints.folders.path(name, 3) for name in ("best", "newest"))
    assert times == 1 and verify(best)["state"] == verify(newest)["state"]
    assert not any(path.samefile(best / path.relative_to(newest)) for path in files_of(newest))


def test_the_second_name_is_not_waited_for(state, tmp_path, monkeypatch):
    finish, may_go_on = Checkpoints._finish, threading.Event()

    def slowly(*args):
        assert may_go_on.wait(60)
        finish(*args)

    monkeypatch.setattr(Checkpoints, "_finish", slowly)
    with opened(tmp_path) as checkpoints:
        for name in ("best", "newest"):
            checkpoints.save(name, 3, at(state, 3), {"best": {"step": 3}})
        assert not checkpoints.folders.steps("best")  # it came back while the first is still being written
        may_go_on.set()
        checkpoints.wait()
        assert checkpoints.folders.steps("best") == checkpoints.folders.steps("newest") == [3]


def test_files_that_disappeared_meanwhile_are_reported(state, tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save("best", 3, at(state, 3), {"best": {"step": 3}})
        checkpoints.wait()
        shutil.rmtree(checkpoints.folders.path("best", 3))
        checkpoints.save("newest", 3, at(state, 3), {"best": {"step": 3}})
        with pytest.raises(DiskFailed, match="which was saved and read back, is damaged: manifest.json is missing"):
            checkpoints.wait()


def test_nothing_older_is_removed_before_the_new_one_was_read_back(state, tmp_path, monkeypatch):
    with opened(tmp_path, keep=1) as checkpoints:
        checkpoints.save("newest", 1, at(state, 1), {"best": None})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints, "_read", lambda folder, like: jax.tree.map(np.zeros_like, like))
        checkpoints.save("newest", 2, at(state, 2), {"best": None})
        with pytest.raises(DiskFailed, match="differs when read back"):
            checkpoints.wait()
        assert checkpoints.folders.steps("newest") == [1]  # the damaged checkpoint is not there
        assert checkpoints.newest_saved() == 1
        verify(checkpoints.folders.path("newest", 1))


def test_too_little_space_is_reported_with_both_numbers_before_anything_is_written(state, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with opened(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(DiskFull, match=r"to save step 1: needs 0\.\d MB, but only 0\.0 MB are free"):
            checkpoints.save("newest", 1, state, {"best": None})
        assert files_of(tmp_path) == []


@pytest.mark.parametrize("names", [("newest",), ("best", "newest")])
def test_a_save_is_retried_until_there_is_room_and_communicates_nothing(state, tmp_path, monkeypatch, names, logged):
    usage, shared = shutil.disk_usage(tmp_path), []
    free = iter([1000, 1000, usage.free])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=next(free, usage.free)))
    monkeypatch.setattr("segnet_jax.system.disk.time", SimpleNamespace(sleep=lambda _: None))
    room = DiskRetry(tmp_path, waits=True, stop=Stop())
    with opened(tmp_path / "checkpoints", broadcast=lambda text: shared.append(text) or text) as checkpoints:
        for name in names:
            room(lambda name=name: checkpoints.save(name, 1, at(state, 1), {"best": None}))
            assert checkpoints.confirm(name, 1) == sum_of_state(jax.device_get(at(state, 1)))
    assert len(logged) == 2 and "waiting for free space" in logged[0]
    assert logged[1] == "disk space is available again: resuming"
    assert shared == []


def test_a_completed_save_is_not_repeated_when_the_disk_fills_up(state, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as checkpoints:
        with monkeypatch.context() as full:
            full.setattr(checkpoints.folders, "set_last_saved", no_room)
            checkpoints.save("newest", 1, at(state, 1), {"best": None})
            with pytest.raises(DiskFull, match="not enough disk space to save step 1"):
                checkpoints.wait()
        checkpoints.save("newest", 1, at(state, 1), {"best": None})
        assert checkpoints.confirm("newest", 1) == sum_of_state(jax.device_get(at(state, 1)))


def test_a_late_failure_of_a_save_is_reported_and_the_save_may_be_repeated(state, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as checkpoints:
        with monkeypatch.context() as full:
            full.setattr(module, "finalize", no_room)
            checkpoints.save("newest", 1, at(state, 1), {"best": None})
            with pytest.raises(DiskFull, match="not enough disk space to save step 1"):
                checkpoints.wait()
        assert checkpoints.folders.steps("newest") == [] and files_of(tmp_path) == []
        checkpoints.save("newest", 1, at(state, 1), {"best": None})
        assert checkpoints.confirm("newest", 1) == sum_of_state(jax.device_get(at(state, 1)))


def test_the_checksum_of_a_state_changes_with_one_bit_a_name_or_a_dtype():
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int32(1)}
    others = [
        state | {"a": np.nextafter(state["a"], 9)},
        state | {"a": state["a"].T},
        state | {"b": np.int64(1)},
        {"a": state["a"], "c": state["b"]},
    ]
    sums = {sum_of_state(each) for each in (state, *others)}
    assert len(sums) == 5 and sum_of_state({"b": np.int32(1), "a": state["a"].copy()}) in sums


def test_a_manifest_lists_every_file_with_size_and_sum(two_saved):
    folder = two_saved / "newest" / "2"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 2 and manifest["files"].keys() == {
        path.relative_to(folder).as_posix() for path in files_of(folder) if path.name != "manifest.json"
    }
    for name, known in manifest["files"].items():
        data = pathlib.Path(folder, name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (known["bytes"], known["sha256"])


@pytest.mark.parametrize(
    "body",
    [
        {"version": 1},
        {"version": 1, "files": []},
        {"files": {}},
        {"version": 1, "files": {"/dev/zero": {"bytes": 0, "sha256": ""}}},
        {"version": 1, "files": {"../x": {"bytes": 0, "sha256": ""}}},
        {"version": 1, "files": {"a\0b": {"bytes": 0, "sha256": ""}}},
        {"version": 1, "files": {"x": None}},
        {"version": 1, "files": {"pipe": {"bytes": 0, "sha256": ""}}},
    ],
)
def test_a_forged_manifest_whose_own_sum_is_right_is_damaged(tmp_path, body):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "manifest.json").write_text(json.dumps(body | {"sha256": training_manifest._sum_of(body)}))
    with pytest.raises(Damaged):
        verify(tmp_path)


def test_all_processes_learn_whether_a_checkpoint_is_intact_even_if_there_is_none(two_saved, tmp_path):
    folder, shared = tmp_path / "checkpoints", []
    shutil.copytree(two_saved, folder)
    with opened(folder, broadcast=lambda text: shared.append(text) or text) as checkpoints:
        assert checkpoints.is_latest("newest", 2) and not checkpoints.is_latest("newest", 1)
        for step in (1, 2):
            (folder / "newest" / str(step) / "meta.json").write_bytes(b"{")
        assert not checkpoints.is_latest("newest", 2)
    assert shared == ["true", "false", "false"]


def test_orbax_version_1_opens_a_checkpoint_of_this_version(two_saved, state):
    """Check Orbax's future interface; adapt the import when it leaves `experimental`."""
    try:
        import orbax.checkpoint.v1 as v1
    except ImportError:
        v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    load = getattr(v1, "load", None) or v1.load_pytree
    tree = load(two_saved / "newest" / "2" / "state")
    expected = jax.device_get(at(state, 2))
    for part in ("params", "batch_stats"):
        ours = dict(jax.tree_util.tree_leaves_with_path(getattr(expected, part)))
        theirs = dict(jax.tree_util.tree_leaves_with_path(tree[part]))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    assert int(tree["step"]) == 2
