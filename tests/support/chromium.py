"""A headless Chromium, driven by its DevTools protocol through a pipe: no other package, no open port.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
KEYS = {"Delete": 46, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
MODIFIERS = {"Control": 2, "Shift": 8}


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser with one tab.

    Attributes:
        requests: The URLs that the tab has requested.
        console: What the tab reported: messages of the console, exceptions and violations of the security policy.
    """

    def __init__(self, *flags: str) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        self._number = 0
        self._buffer = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [find_chromium() or "", *FLAGS, *flags, f"--user-data-dir={self._profile.name}"]
        self._process, self._read, self._write = _start(command)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._number
        self._receive(lambda: number in self._answers, 60)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Read messages until `is_done`."""
        end = time.monotonic() + seconds
        while not is_done():
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium gave no answer for {seconds} seconds")
            data = os.read(self._read, 1 << 16)
            if not data:
                raise RuntimeError("Chromium ended")
            *messages, self._buffer = (self._buffer + data).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        parameters = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled":
                values = [
                    str(each.get("value", each.get("description"))) for each in parameters["args"]
                ]
                self.console.append(f"{parameters['type']}: {' '.join(values)}")
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.console.append(details.get("exception", {}).get("description", str(details)))
            case "Log.entryAdded":
                self.console.append(parameters["entry"]["text"])

    def open(self, url: str) -> None:
        """Go to an address, and wait until the page's own scripts have run."""
        self.send("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript, which may contain `await`, and return its value."""
        answer = self.send(
            "Runtime.evaluate",
            expression=f"(async () => ({expression}))()",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Wait until JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {seconds} seconds: {expression}")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText.trim()")

    def choose(self, selector: str, *paths: Path) -> None:
        """Choose files in a file field."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send(
            "DOM.setFileInputFiles", nodeId=node, files=[str(path.absolute()) for path in paths]
        )

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse over an element, between shares of its width and height."""
        box = self.run(
            f"(({{left, top, width, height}}) => ({{left, top, width, height}}))"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )

        def move(kind: str, place: tuple[float, float], **more: Any) -> None:
            x = box["left"] + place[0] * box["width"]
            y = box["top"] + place[1] * box["height"]
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

        move("mouseMoved", start)
        move("mousePressed", start, button="left", clickCount=1)
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        for place in (middle, end):
            move("mouseMoved", place, button="left", buttons=1)
        move("mouseReleased", end, button="left", clickCount=1)

    def press(self, key: str, *modifiers: str) -> None:
        """Press a key of KEYS."""
        flags = sum(MODIFIERS[name] for name in modifiers)
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=KEYS[key],
                modifiers=flags,
            )

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def use_theme(self, name: str) -> None:
        """Set what the user prefers: `light` or `dark`."""
        self.send(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}]
        )

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


def _start(command: list[str]) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start Chromium, which reads commands from descriptor 3 and writes to 4."""
    commands_in, commands_out = os.pipe()
    answers_in, answers_out = os.pipe()
    # The shell moves the ends of the pipes to the numbers that Chromium expects.
    script = f'exec 3<&{commands_in} 4>&{answers_out} && exec "$@" >/dev/null 2>&1'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(commands_in, answers_out),
        stdin=subprocess.DEVNULL,
    )
    os.close(commands_in)
    os.close(answers_out)
    return process, answers_in, commands_out
