"""Test the cache of decoded samples: correct, written once, rebuilt if damaged, and never required."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from test_tf_data import fails_with, random_split

from segnet_jax.data.dataset import Split
from segnet_jax.data.images.fit import resize
from segnet_jax.data.input_pipeline import cache as module
from segnet_jax.data.input_pipeline.cache import open_cached
from segnet_jax.system.errors import UserError

COUNT, SIZE = 5, (6, 7)


@pytest.fixture
def split():
    return random_split(COUNT, *SIZE)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def counted(split):
    """Return a copy of the split and the list of the indices read from it."""
    reads = []

    def read(index):
        reads.append(index)
        return split.read(index)

    return Split(split.names, read, split.fingerprint), reads


def unreadable(split):
    def fail(index):
        raise AssertionError(f"record {index} was decoded again")

    return Split(split.names, fail, split.fingerprint)


def assert_holds(samples, split, size=SIZE):
    assert len(samples) == len(split) and samples.image_size == size
    for index in range(len(split)):
        for ours, expected in zip(samples.read(index), resize(*split.read(index), *size), strict=True):
            assert ours.dtype == np.uint8 and np.array_equal(ours, expected)


def folder_of(cache):
    """Return the only folder in the cache."""
    (folder,) = cache.iterdir()
    return folder


@pytest.mark.parametrize("size", [SIZE, (4, 9), (12, 3)])
def test_samples_equal_the_readers_at_the_requested_size(split, cache, size):
    advanced = []
    samples = open_cached(split, size, cache, lambda: advanced.append(1))
    assert_holds(samples, split, size)
    assert len(advanced) == COUNT
    images, labels = zip(*(resize(*split.read(i), *size) for i in range(COUNT)), strict=True)
    assert np.array_equal(samples.images, np.stack(images)) and np.array_equal(samples.labels, np.stack(labels))
    assert samples.num_bytes == samples.images.nbytes + samples.labels.nbytes


def test_a_second_opening_decodes_nothing_and_logs_nothing(split, cache, logged):
    open_cached(split, SIZE, cache)
    advanced = []
    again = open_cached(unreadable(split), SIZE, cache, lambda: advanced.append("a sample"))
    assert_holds(again, split)
    assert advanced == logged == []


def test_another_fingerprint_or_size_is_decoded_again_and_keeps_the_first(split, cache):
    other = random_split(COUNT, *SIZE, seed=1)
    for one, size in ((split, SIZE), (split, SIZE[::-1]), (other, SIZE)):
        one, reads = counted(one)
        assert_holds(open_cached(one, size, cache), one, size)
        assert set(reads) == set(range(COUNT))
    for one, size in ((split, SIZE), (split, SIZE[::-1]), (other, SIZE)):
        assert_holds(open_cached(unreadable(one), size, cache), one, size)
    assert len(list(cache.iterdir())) == 3


def test_samples_are_read_only(split, cache):
    for _ in range(2):  # just decoded, and found in the cache
        samples = open_cached(split, SIZE, cache)
        for array in (samples.images, samples.labels, *samples.read(2)):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def test_nothing_is_written_outside_the_given_folder(split, cache, tmp_path, monkeypatch):
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    open_cached(split, SIZE, cache / "of" / "mine")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(path.is_relative_to(cache / "of" / "mine") for path in files)


def flip_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit of an image flipped": lambda folder: flip_bit(folder / "images.npy", -20),
    "a bit of a label flipped": lambda folder: flip_bit(folder / "labels.npy", -1),
    "a bit before the images flipped": lambda folder: flip_bit(folder / "images.npy", 10),  # the { of numpy's header
    "images cut off": lambda folder: os.truncate(folder / "images.npy", 300),
    "images cut to nothing": lambda folder: os.truncate(folder / "images.npy", 0),
    "labels cut by a byte": lambda folder: os.truncate(
        folder / "labels.npy", (folder / "labels.npy").stat().st_size - 1
    ),
    "no labels": lambda folder: (folder / "labels.npy").unlink(),
    "no header": lambda folder: (folder / "header.json").unlink(),
    "a header cut off": lambda folder: os.truncate(folder / "header.json", 30),
    "a header of no text": lambda folder: (folder / "header.json").write_bytes(b"\xff\x00\xfe"),
    "a header of another kind": lambda folder: (folder / "header.json").write_text("[]"),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected_reported_and_repaired(split, cache, damage, logged):
    open_cached(split, SIZE, cache)
    DAMAGES[damage](folder_of(cache))
    reader, reads = counted(split)
    assert_holds(open_cached(reader, SIZE, cache), split)
    assert set(reads) == set(range(COUNT))
    assert logged == [f"warning: {folder_of(cache)} is damaged and will be rebuilt"]
    assert_holds(open_cached(unreadable(split), SIZE, cache), split)


@pytest.mark.parametrize("swept", [True, False])  # False: as after a kill, when nothing is swept
@pytest.mark.parametrize("last", [0, COUNT - 1])
def test_what_a_stop_in_mid_decoding_leaves_is_not_taken_for_whole(split, cache, monkeypatch, swept, last, logged):
    def read(index):
        if index == last:
            raise UserError(f"record {index} is damaged")
        return split.read(index)

    with monkeypatch.context() as patch:
        if not swept:
            patch.setattr(shutil, "rmtree", lambda *args, **settings: None)
        with pytest.raises(UserError, match=f"^record {last} is damaged$"):
            open_cached(Split(split.names, read, split.fingerprint), SIZE, cache)
    left = list(cache.iterdir())
    assert len(left) == (0 if swept else 1)
    reader, reads = counted(split)
    assert_holds(open_cached(reader, SIZE, cache), split)
    assert set(reads) == set(range(COUNT)) and logged == []
    assert_holds(open_cached(unreadable(split), SIZE, cache), split)


def make_room(monkeypatch, cache, *, free=2**40, limit=2**40, writable=True, in_the_way=False, allocate=0):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(module, "LIMIT", limit)
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    if in_the_way:
        cache.write_text("no folder")
    if allocate:
        monkeypatch.setattr(os, "posix_fallocate", fails_with(allocate), raising=False)


NEEDED = COUNT * 6 * 7 * 4
NO_ROOM = {
    "a full disk": ({"free": NEEDED}, "only 0 MB are free in "),
    "more than is ever kept": ({"limit": NEEDED - 1}, "the limit is 0 MB"),
    "a limit found only when writing": ({"allocate": errno.ENOSPC}, "cannot be written to (No space left on device)"),
    "a quota": ({"allocate": errno.EDQUOT}, "cannot be written to (Disk quota exceeded)"),
    "a cache that is not ours": ({"writable": False}, "cache cannot be written to"),
    "a file where the cache should be": ({"in_the_way": True}, "cache cannot be used (File exists)"),
}


@pytest.mark.parametrize("reason", NO_ROOM)
def test_without_disk_space_the_same_samples_are_streamed_with_one_line_of_explanation(
    split, cache, monkeypatch, reason, logged
):
    settings, why = NO_ROOM[reason]
    make_room(monkeypatch, cache, **settings)
    reader, reads = counted(split)
    samples = open_cached(reader, SIZE[::-1], cache)
    assert reads == []  # decoded lazily
    assert_holds(samples, split, SIZE[::-1])
    assert reads == list(range(COUNT)) and samples.images is None and samples.labels is None
    assert len(logged) == 1 and "\n" not in logged[0] and why in logged[0] and "decoded at each use" in logged[0]
    assert not cache.is_dir() or not list(cache.iterdir())


def test_samples_that_just_fit_are_cached(split, cache, monkeypatch):
    make_room(monkeypatch, cache, free=NEEDED * 10 / 9 + 1, limit=NEEDED)
    assert open_cached(split, SIZE, cache).images is not None


def test_two_concurrent_decoders_get_right_samples_and_leave_one_copy(split, cache):
    both_decode = threading.Barrier(2)

    def read(index):
        if index == 0:
            both_decode.wait(timeout=30)
        return split.read(index)

    got = []
    threads = [
        threading.Thread(
            target=lambda: got.append(open_cached(Split(split.names, read, split.fingerprint), SIZE, cache)),
            daemon=True,
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(got) == 2
    for samples in got:
        assert_holds(samples, split)
        assert samples.images is not None
    assert {path.name for path in folder_of(cache).iterdir()} == {"images.npy", "labels.npy", "header.json"}


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_room_is_taken_by_writing_where_the_system_cannot_reserve_it(split, cache, monkeypatch, number):
    make_room(monkeypatch, cache, allocate=number)
    monkeypatch.setattr(module, "_BLOCK", 100)
    assert_holds(open_cached(split, SIZE, cache), split)
    assert_holds(open_cached(unreadable(split), SIZE, cache), split)


def test_room_is_taken_for_every_byte_before_anything_is_decoded(split, cache):
    taken = []

    def read(index):
        (folder,) = cache.glob("decoded-*.*")
        taken.append([(folder / f"{name}.npy").stat() for name in ("images", "labels")])
        return split.read(index)

    open_cached(Split(split.names, read, split.fingerprint), SIZE, cache)
    assert all(stat.st_blocks * 512 >= stat.st_size > 0 for stats in taken for stat in stats)


@pytest.mark.parametrize("what", ["a file", "a dead link", "a link to a folder"])
def test_a_file_in_place_of_the_cache_folder_is_replaced(split, cache, tmp_path, what, logged):
    open_cached(split, SIZE, cache)
    folder = folder_of(cache)
    shutil.rmtree(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("mine")
    if what == "a file":
        folder.write_text("no folder")
    else:
        folder.symlink_to(tmp_path / ("gone" if what == "a dead link" else "other"))
    assert_holds(open_cached(split, SIZE, cache), split)
    assert logged == [f"warning: {folder} is damaged and will be rebuilt"]
    assert open_cached(unreadable(split), SIZE, cache).images is not None and len(logged) == 1
    assert (tmp_path / "other" / "mine").read_text() == "mine"


class Stopped(Exception):
    """Raised by a callback, not by a reader, to stop."""


def test_a_stop_while_decoding_ends_it_promptly_and_leaves_nothing(cache):
    split, reads = counted(random_split(500, *SIZE))

    def read(index):
        time.sleep(0.01)
        return split.read(index)

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        open_cached(Split(split.names, read, split.fingerprint), SIZE, cache, stop)
    assert len(reads) < 100
    assert list(cache.iterdir()) == []


DECODES_FOR_EVER = """
import pathlib, sys, time
from segnet_jax.data.dataset import Split
from segnet_jax.data.input_pipeline.cache import open_cached

def read(index):
    print("decoding", flush=True)
    time.sleep(600)

open_cached(Split(("a",), read, "0" * 64), (6, 7), pathlib.Path(sys.argv[1]))
"""


def test_what_a_killed_decoding_leaves_is_swept_and_what_a_living_one_fills_is_not(split, cache):
    def start():
        child = subprocess.Popen([sys.executable, "-c", DECODES_FOR_EVER, str(cache)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"decoding\n"
        return child

    killed = start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (left,) = cache.iterdir()
    living = start()  # sweeps at its own start, too
    try:
        (filled,) = cache.iterdir()
        assert filled != left
        (cache / "decoded-notes.txt").write_text("not ours to remove")
        (cache / "decoded-1-just-made.abcd").mkdir()  # whose maker may be about to lock it
        (cache / "decoded-1-long-ago.abcd").mkdir()
        os.utime(cache / "decoded-1-long-ago.abcd", (0, 0))
        assert_holds(open_cached(split, SIZE, cache), split)
        names = {path.name for path in cache.iterdir()}
        assert len(names) == 4 and {filled.name, "decoded-notes.txt", "decoded-1-just-made.abcd"} < names
    finally:
        living.kill()
        living.wait()
        living.stdout.close()
        killed.stdout.close()
