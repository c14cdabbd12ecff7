"""A headless Chromium, driven through chromedriver's HTTP interface (https://www.w3.org/TR/webdriver2)."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str:
    """What there is not, or ""."""
    if not any(map(shutil.which, NAMES)):
        return "no Chromium (Debian: apt install chromium chromium-driver)"
    return "" if shutil.which("chromedriver") else "no chromedriver (Debian: apt install chromium-driver)"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """What the condition returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s for {what}")


class Browser:
    """One window. A context manager; closing it ends the processes."""

    def __init__(self, profile: Path):
        port = free_port()
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._place = f"http://127.0.0.1:{port}"
        wait_for(self._ready, "chromedriver", 20)
        binary = next(filter(None, map(shutil.which, NAMES)))
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._place += "/session/" + self._call("/session", wanted)["sessionId"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def open(self, address: str) -> None:
        self._call("/url", {"url": address})

    def find(self, xpath: str) -> list[str]:
        found = self._call("/elements", {"using": "xpath", "value": xpath})
        return [element[ELEMENT] for element in found]

    def wait(self, xpath: str, count: int = 1, seconds: float = 60) -> list[str]:
        """The elements, as soon as there are so many of them."""

        def enough() -> list[str]:
            found = self.find(xpath)
            return found if len(found) >= count else []

        return wait_for(enough, xpath, seconds)

    def click(self, xpath: str) -> None:
        self._call(f"/element/{self.wait(xpath)[0]}/click", {})

    def write(self, xpath: str, text: str) -> None:
        """Put text into a field, or a file's path into an upload."""
        self._call(f"/element/{self.wait(xpath)[0]}/value", {"text": text})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def value(self, xpath: str) -> str:
        return self._call(f"/element/{self.wait(xpath)[0]}/property/value", method="GET")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("/screenshot", method="GET")))

    def _ready(self) -> bool:
        try:
            return self._call("/status", method="GET")["ready"]
        except OSError:
            return False

    def _call(self, path: str, body: dict | None = None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._place + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
