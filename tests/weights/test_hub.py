"""Test networks from the Hugging Face Hub, here a local server: two files of limited size, a folder without links."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hub_server import COMMIT, serve
from made_runs import make_run
from PIL import Image

import segnet_jax
from segnet_jax import evaluate, export
from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.runs.initialization import read_initial
from segnet_jax.system.errors import UserError
from segnet_jax.weights import hub

pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]' runs these tests")

NETWORK = "network.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the files of a repository: an export, and a code file that must not be requested."""
    folder = tmp_path_factory.mktemp("made")
    options = export.ExportOptions(
        str(make_run(folder / "run")), format=("safetensors",), out=str(folder / "out"), images=1
    )
    assert export.export(options) == 0
    names = (NETWORK, "README.md")
    return {name: (folder / "out" / name).read_bytes() for name in names} | {"modeling.py": b"raise SystemExit(1)"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # read at import, so only by other processes
    return tmp_path / "cache" / "hub" / "someone--street"


@pytest.fixture
def hub_at(monkeypatch):
    return lambda url: monkeypatch.setenv("HF_ENDPOINT", url)


def all_files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_a_repository_is_copied_to_a_plain_folder_and_used_again_without_a_connection(files, cache, hub_at):
    with serve({"someone/street": files}) as (url, requests):
        hub_at(url)
        folder = hub.fetch_repository("hf://someone/street")
        assert folder == cache / COMMIT and all_files(folder) == ["README.md", NETWORK]
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert {name: (folder / name).read_bytes() for name in (NETWORK, "README.md")}.items() <= files.items()
        assert not any("modeling.py" in request for request in requests)
        assert hub.fetch_repository(f"hf://someone/street@{COMMIT}") == folder
        assert (
            len([request for request in requests if request == f"GET /someone/street/resolve/{COMMIT}/{NETWORK}"]) <= 1
        )
    assert hub.fetch_repository("hf://someone/street") == folder  # the server has gone
    with pytest.raises(
        UserError, match="cannot download hf://someone/other: the Hub cannot be reached, and there is no earlier"
    ):
        hub.fetch_repository("hf://someone/other")


def test_a_repository_without_a_card_is_enough(files, cache, hub_at):
    with serve({"someone/street": {NETWORK: files[NETWORK]}}) as (url, _):
        hub_at(url)
        assert all_files(hub.fetch_repository("hf://someone/street")) == [NETWORK]


@pytest.mark.parametrize(
    "source, message",
    [
        ("hf://someone/none", "cannot download hf://someone/none: .*404"),
        ("hf://someone/street@other", "cannot download hf://someone/street@other: .*404"),
        ("hf://someone/empty", "hf://someone/empty contains no network.safetensors"),
        ("hf://someone", "must be named hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got hf://someone"),
        ("hf://../../etc", "must be named hf://OWNER/NAME"),
        ("hf://a/b/c", "must be named hf://OWNER/NAME"),
        ("hf://a/b@../x", "must be named hf://OWNER/NAME"),
    ],
)
def test_what_is_no_repository_or_has_no_network_is_refused_in_one_line(files, cache, hub_at, source, message):
    with serve({"someone/street": files, "someone/empty": {"README.md": b"#"}}) as (url, _):
        hub_at(url)
        with pytest.raises(UserError, match=message) as caught:
            hub.fetch_repository(source)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_downloaded(files, cache, hub_at):
    with serve({"someone/street": files}, sizes={NETWORK: 3_000_000_000}) as (url, requests):
        hub_at(url)
        with pytest.raises(
            UserError, match="network.safetensors of hf://someone/street is 3000000000 bytes, over the limit of"
        ):
            hub.fetch_repository("hf://someone/street")
        assert not [request for request in requests if request.startswith("GET")] and not cache.exists()


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match='needs huggingface_hub, which is not installed: pip install -e ".\\[hub\\]"'):
        hub.fetch_repository("hf://someone/street")


def test_load_init_evaluate_and_the_command_predict_take_the_name_of_a_repository(files, cache, hub_at, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "street.png")
    with serve({"someone/street": files}) as (url, _):
        hub_at(url)
        network = segnet_jax.load("hf://someone/street")
        assert network.step == 7
        config = Config(data="synthetic", depth=1, width=1 / 16, init="hf://someone/street")
        trained = read_initial(config, choose_devices("1"))
        assert trained.source == "hf://someone/street" and trained.classes == network.class_names
        with pytest.raises(UserError, match="does not name a dataset: add --data"):
            evaluate.evaluate(evaluate.EvaluateOptions("hf://someone/street"))
        command = [sys.executable, "-m", "segnet_jax.predict", "hf://someone/street", "street.png"]
        environment = os.environ | {"HF_ENDPOINT": url, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 2 and "is not a folder to write predictions to: add --out FOLDER" in ended.stderr
        ended = subprocess.run(
            [*command, "--out", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "street.png")), network.predict(image))
    written = {path.name for path in pathlib.Path(tmp_path).iterdir()}
    assert written <= {"cache", "street.png", "out", "hf"}
