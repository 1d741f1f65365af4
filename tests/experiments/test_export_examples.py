"""Test the examples that use exported networks: onnxruntime in Python, and onnxruntime-web in headless Chromium."""

import base64
import contextlib
import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import browser
import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

from segnet_jax import export

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="ONNX is not installed: pip install -e '.[onnx]' runs these tests"
)

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "export"
MODULES = pathlib.Path(os.environ.get("SEGNET_JAX_NODE_MODULES") or FOLDER / "browser" / "node_modules")
SIZE = (24, 32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a folder with network.onnx and export.json."""
    folder = tmp_path_factory.mktemp("exported")
    run = make_run(folder / "run", image_size=SIZE)
    assert export.export(export.ExportOptions(str(run), format=("onnx",), out=str(folder / "out"), images=1)) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def class_ids_of(exported, picture):
    session = onnxruntime.InferenceSession(exported / "network.onnx", providers=["CPUExecutionProvider"])
    return session.run(["prediction"], {"images": picture[None]})[0][0]


def expected_lines(exported, picture):
    """Return "NAME 12.3 %" for each class in a picture, the largest first."""
    names = json.loads((exported / "export.json").read_text())["onnx"]["classes"]
    counts = np.bincount(class_ids_of(exported, picture).ravel(), minlength=len(names))
    order = [each for each in np.argsort(-counts, kind="stable") if counts[each]]
    return [(names[each], f"{100 * counts[each] / counts.sum():.1f} %") for each in order]


def test_the_python_example_segments_an_image_without_this_package(exported, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "street.png")
    command = [sys.executable, FOLDER / "segment.py", exported / "network.onnx", "street.png", "overlay.png"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    printed = [line.split(" %  ") for line in ended.stdout.splitlines()]
    assert [(name, f"{number.strip()} %") for number, name in printed] == expected_lines(exported, picture)
    colors = json.loads((exported / "export.json").read_text())["onnx"]["colors"]
    painted = np.uint8(colors)[class_ids_of(exported, picture)]
    blended = np.asarray(Image.blend(Image.fromarray(picture), Image.fromarray(painted), 0.5))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), blended)
    assert "segnet_jax" not in (FOLDER / "segment.py").read_text()


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html"
    finally:
        server.shutdown()
        server.server_close()


def status_of(page, beginning):
    """Wait for a page status that begins with a text or reports an error; return it."""
    until = time.monotonic() + browser.LIMIT
    while time.monotonic() < until:
        status = page.see("document.getElementById('status').textContent")
        if status.startswith((beginning, "The network cannot", "This picture cannot")):
            return status
        time.sleep(0.2)
    raise AssertionError(f"the page still says {status!r}")


DROP = """{
const bytes = Uint8Array.from(atob("%s"), (character) => character.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "street.png", {type: "image/png"}));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
}"""


@pytest.mark.skipif(browser.PATH is None, reason="no Chromium")
@pytest.mark.skipif(
    not (MODULES / "onnxruntime-web").is_dir(),
    reason="onnxruntime-web is not installed: npm install onnxruntime-web in experiments/export/browser, or set "
    "SEGNET_JAX_NODE_MODULES",
)
def test_the_page_segments_a_dropped_picture_as_onnxruntime_does(exported, picture, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(FOLDER / "browser", site, ignore=shutil.ignore_patterns("node_modules"))
    (site / "node_modules").symlink_to(MODULES.absolute())
    for name in ("network.onnx", "export.json"):
        shutil.copy(exported / name, site / name)
    Image.fromarray(picture).save(tmp_path / "street.png")
    dropped = base64.b64encode((tmp_path / "street.png").read_bytes()).decode()
    with served(site) as url, browser.Page(tmp_path / "profile", url, local=True) as page:
        page.look(900, "light")
        assert status_of(page, "Ready") == "Ready: 11 classes, pictures are resized to 24x32."
        page.see(DROP % dropped)
        assert status_of(page, "Done").startswith("Done in")
        ids = page.see("Array.from(state.classIds)")
        assert ids == class_ids_of(exported, picture).ravel().tolist()
        lines = page.see("Array.from(document.querySelectorAll('#classes li'), (item) => item.textContent)")
        assert lines == [" ".join(each) for each in expected_lines(exported, picture)]
        assert page.see("[document.getElementById('canvas').width, document.getElementById('canvas').height]") == [
            32,
            24,
        ]
        page.see(DROP % base64.b64encode(b"no picture").decode())
        assert status_of(page, "This picture cannot be segmented")
        assert not page.errors and all(request.startswith(url.rsplit("/", 1)[0]) for request in page.requests)
