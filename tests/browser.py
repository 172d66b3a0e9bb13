"""A headless Chromium, steered over the DevTools protocol: what a page shows, says to the console and asks of the net.

scripts/test.sh installs one where it can. Without it tests are skipped; with VISIONFLOW_BROWSER=required they fail.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60  # for any answer; a busy machine takes seconds to start it


def executable() -> str:
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        said = f"no browser: none of {', '.join(NAMES)} is installed"
        pytest.fail(said) if os.environ.get("VISIONFLOW_BROWSER") == "required" else pytest.skip(said)
    return found


class Browser:
    """One page at a time.

    Attributes:
        errors: what went wrong in the page since it was opened: exceptions, console errors, blocked or failed requests.
        requests: every address that the page asked for beside itself and data addresses.
    """

    def __init__(self, profile: Path):
        command_in, self.commands = os.pipe()
        self.answers, answer_out = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
        command = [executable(), *flags.split(), f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{command_in} 4>&{answer_out}', "bash", *command],
            pass_fds=(command_in, answer_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_in)
        os.close(answer_out)
        self.buffer, self.number, self.session = b"", 0, None
        self.errors, self.requests, self.loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def receive(self) -> dict:
        limit = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, limit - time.monotonic()))
            part = os.read(self.answers, 2**16) if ready else b""
            assert part, f"the browser gave no answer in {SECONDS} s (exit code {self.process.poll()})"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        self.note(message.get("method"), message.get("params", {}))
        return message

    def note(self, event: str | None, params: dict) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(part.get("value")) for part in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith("data:") and address != self.address:
                self.requests.append(address)
        elif event == "Page.loadEventFired":
            self.loaded = True

    def open(self, file: Path, width: int, height: int = 800) -> None:
        """Show a file in a window of this many CSS px, as a phone below 600."""
        self.address = file.absolute().as_uri()
        self.errors, self.requests, self.loaded = [], [], False
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=self.address)
        while not self.loaded:
            self.receive()
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The whole page, also what one would have to scroll to."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def print(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        os.close(self.commands)
        os.close(self.answers)
