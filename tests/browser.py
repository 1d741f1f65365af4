"""Headless Chromium without network, controlled over pipes with the DevTools protocol."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT = 60  # seconds for an answer


class Page:
    """An open page, as a context manager.

    Args:
      folder: folder for the browser's files.
      url: URL to open once event handlers are installed.
      local: whether a server at 127.0.0.1 can be reached; nothing else can.

    Attributes:
      errors: console errors and warnings, exceptions, and violations of the page's content security policy.
      requests: requested URLs except data URLs.
    """

    def __init__(self, folder, url: str, local: bool = False):
        self.errors, self.requests, self._loaded, self._number = [], [], 0, 0
        read_orders, self._orders = os.pipe()
        self._answers, write_answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        flags += [
            "--hide-scrollbars",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND" + ", EXCLUDE 127.0.0.1" * local,
        ]
        without_network = ["unshare", "-n"]
        can_cut = not local and (
            shutil.which("unshare") and not subprocess.run([*without_network, "true"], capture_output=True).returncode
        )
        cut_off = without_network if can_cut else []

        place = f'exec "$@" 3<&{read_orders} 4>&{write_answers}'  # where the browser looks for the pipes
        self._process = subprocess.Popen(
            ["bash", "-c", place, "bash", *cut_off, PATH, *flags, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(read_orders, write_answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(folder)},
        )
        os.close(read_orders)
        os.close(write_answers)
        self._rest, self._session = b"", None
        target = self.order("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.order(f"{domain}.enable")
        self.open(url)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        self._session = None
        with contextlib.suppress(Exception):
            self.order("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        os.close(self._orders)
        os.close(self._answers)

    def open(self, url: str) -> None:
        before = self._loaded
        self.order("Page.navigate", url=url)
        while self._loaded == before:
            self._note(self._next())

    def order(self, method: str, **params):
        """Send a command and return its result; record events received in the meantime."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        request |= {"sessionId": self._session} if self._session else {}
        os.write(self._orders, json.dumps(request).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def see(self, script: str):
        """Evaluate a script and return its value."""
        found = self.order("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def look(self, width: int, scheme: str, height: int = 900) -> None:
        """Set the window size and the light or dark color scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.order("Emulation.setEmulatedMedia", features=features)
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.order("Emulation.setDeviceMetricsOverride", **sizes)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.order("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        code = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.order("Input.dispatchKeyEvent", **event, **({"text": "\r"} if key == "Enter" else {}))

    def picture(self, path, whole: bool = True) -> None:
        """Save a screenshot of the whole page as PNG."""
        found = self.order("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict:
        until = time.monotonic() + LIMIT
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], max(0, until - time.monotonic()))[0], "the browser is silent"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser has gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded += 1
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(params)
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.errors.append(params)
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith("data:"):
                self.requests.append(params["request"]["url"])
