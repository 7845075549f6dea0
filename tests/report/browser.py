"""A headless Chromium driven over a pipe by its DevTools protocol; no network, no dependency."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    # Whatever a page asked for by a name would fail, and be seen as a console error.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
WAIT_S = 60


def find_chromium():
    """Path of a Chromium, or None; the environment variable CHROMIUM names another one."""
    names = (os.environ.get("CHROMIUM", "chromium"), "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One page at a time; what it says on its console is kept in ``console``."""

    def __init__(self, executable, profile):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def hand_over():
            # The browser reads commands from 3 and writes answers to 4; first out of their way.
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=hand_over,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer, self._session = 0, b"", None
        self.console, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError, ConnectionError):
            self._session = None
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method, **parameters):
        """Send a command and wait for its answer; events in between are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self):
        deadline = time.monotonic() + WAIT_S
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            if not part:
                raise ConnectionError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        parameters = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.console.append(parameters["exceptionDetails"]["exception"]["description"])
        elif event["method"] == "Runtime.consoleAPICalled":
            self.console.append(f"{parameters['type']}: {parameters['args']}")
        elif event["method"] == "Log.entryAdded":
            self.console.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
        elif event["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def open(self, path, *, width=1200, height=900, dark=False, phone=False):
        """Load a file and wait until the page says that it is ready."""
        self.console.clear()
        self.requests.clear()
        self.resize(width, height, phone=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        # The page before is not to be taken for the one to come.
        self.run("delete document.documentElement.dataset.ready")
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        deadline = time.monotonic() + WAIT_S
        while self.run("document.documentElement?.dataset.ready") != "yes":
            assert not self.console, self.console
            assert time.monotonic() < deadline, "the page is not ready"
            time.sleep(0.05)
        self.settle()

    def resize(self, width, height=900, *, phone=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def settle(self):
        """Wait until what was changed is drawn, charts included."""
        self.run("globalThis.drawn?.()")
        self.run("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def run(self, code):
        """The JSON value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def count(self, selector):
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def click(self, selector, text=None):
        """Press the mouse on the first match, or on the one with that text."""
        place = self.run(
            f"""(() => {{
              const nodes = [...document.querySelectorAll({json.dumps(selector)})];
              const text = {json.dumps(text)};
              const node = nodes.find((one) => text === null || one.textContent.trim() === text);
              if (!node) return null;
              node.scrollIntoView({{ block: "center", behavior: "instant" }});
              const box = node.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        assert place, f"nothing matches {selector} {text or ''}"
        self.mouse("mousePressed", *place)
        self.mouse("mouseReleased", *place)
        self.settle()

    def mouse(self, kind, x, y):
        options = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def tap(self, x, y):
        """Touch a place of the window with a finger."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()
        self.call("Emulation.setTouchEmulationEnabled", enabled=False)

    def press(self, key):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowRight": 39}
        parameters = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)
        self.settle()

    def choose(self, selector, value):
        """Choose an option or type a text, as a person's input event."""
        self.run(
            f"""(() => {{
              const node = document.querySelector({json.dumps(selector)});
              node.value = {json.dumps(value)};
              const kind = node.tagName === "SELECT" ? "change" : "input";
              node.dispatchEvent(new Event(kind, {{ bubbles: true }}));
            }})()"""
        )
        self.settle()

    def pick(self, panel, name, start):
        """Choose the option of a figure's choice that starts with a text."""
        choice = f'#{panel} select[name="{name}"]'
        options = f"[...document.querySelector({json.dumps(choice)}).options].map((o) => o.value)"
        self.choose(choice, next(one for one in self.run(options) if one.startswith(start)))

    def marks(self, panel="quality", kind="symbol"):
        """Marks of a chart as [what it tells, fill, stroke, x, y], in the order of drawing."""
        return self.run(
            f"""[...document.querySelectorAll("#{panel} .chart .mark-{kind}.role-mark > path")]
            .map((m) => [m.ariaLabel, m.getAttribute("fill"), m.getAttribute("stroke"),
              ...(m.getAttribute("transform") ?? "0 0").match(/-?[\\d.]+/g).map(Number)])"""
        )

    def screenshot(self, path, selector="html"):
        """An element, by default the whole page, as PNG."""
        box = self.run(
            f"""(() => {{
              const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
              return [box.x + scrollX, box.y + scrollY, box.width, box.height];
            }})()"""
        )
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        done = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(done["data"]))

    def pdf(self, path):
        """The page as printed."""
        done = self.call("Page.printToPDF", printBackground=False)
        Path(path).write_bytes(base64.b64decode(done["data"]))
