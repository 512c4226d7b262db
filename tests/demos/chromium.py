"""A headless Chromium for tests, driven over its DevTools protocol as a person would: type, click, read.

Source: https://chromedevtools.github.io/devtools-protocol/
"""
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = {
    "darwin": [
        f"/Applications/{name}.app/Contents/MacOS/{name}"
        for name in ("Google Chrome", "Chromium", "Microsoft Edge")
    ],
    "win32": [
        Path(os.environ.get(folder, "C:/")) / name
        for folder in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
        for name in ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
    ],
}


def program():
    """Where a Chromium is, or None."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or next((str(path) for path in PLACES.get(sys.platform, []) if Path(path).is_file()), None)


class Chromium:
    """One browser with one tab; it reaches nothing but this machine."""

    def __init__(self, patience=60, *options):
        self._profile = tempfile.TemporaryDirectory(prefix="slm-course-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [
                program(),
                "--headless=new",
                f"--user-data-dir={self._profile.name}",
                "--remote-debugging-port=0",
                "--no-first-run",
                "--no-sandbox",  # root has no sandbox in a container, and the page is ours
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                *options,
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = self._connect(patience)
            self._last = 0
        except BaseException:
            self.close()
            raise

    def _connect(self, patience):
        written = Path(self._profile.name) / "DevToolsActivePort"
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self._process.poll() is None:
            if written.is_file() and len(lines := written.read_text().split()) == 2:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{lines[0]}/json/list", timeout=patience
                ) as answer:
                    tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
                if tabs:
                    return websocket.create_connection(
                        tabs[0]["webSocketDebuggerUrl"], timeout=patience, suppress_origin=True
                    )
            time.sleep(0.1)
        raise RuntimeError(f"{program()} did not start (exit status {self._process.poll()})")

    def call(self, method, **parameters):
        """One command of the protocol, and its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv())).get("id") != self._last:
            pass  # events, which nobody asked for
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def open(self, address):
        self.call("Page.navigate", url=address)

    def value(self, expression):
        """What a JavaScript expression gives in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")

    def text(self, element):
        """The visible text of the element with this id; "" where there is none."""
        return self.value(f"document.getElementById({json.dumps(element)})?.innerText ?? ''")

    def wait(self, expression, seconds, failed="false"):
        """Wait until an expression holds in the page; else, or once `failed` does: an error with its text."""
        deadline = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            if self.value(f"Boolean({failed})") or time.monotonic() > deadline:
                raise AssertionError(
                    f"not so: {expression}\nThe page says:\n{self.value('document.body.innerText')}"
                )
            time.sleep(0.2)

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self._process.kill()
        self._process.wait()
        self._profile.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
