"""Opens pages in Chromium, as a phone and as a desktop would, light and dark, and says what is wrong with them.

    check.py SCREENSHOTS PAGE...

Prints `ok PAGE …` for each page and way of looking at it. Needs `chromium` and `chromedriver`, and nothing beyond Python's standard library.
"""

import base64
import contextlib
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

MAX_BYTES = 5_000_000
MAX_SECONDS = 2.0
LEAST_CONTRAST = 4.5
WIDTHS = {"phone": 360, "desktop": 1280}
# A screenshot goes no further down.
MAX_HEIGHT = 6000

# Without the later ones, Chromium waits for a network that there may not be.
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
--disable-sync --disable-dev-shm-usage --hide-scrollbars""".split()

# What is wrong with a page, as a list of words.
PROBLEMS = """
const width = arguments[0], least = arguments[1], wrong = [];
const root = document.documentElement;
if (root.scrollWidth > width) wrong.push(`the page is ${root.scrollWidth} wide, not ${width}`);
const name = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute('class') || ''} “${e.textContent.trim().slice(0, 30)}”`;
const number = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
    for (; e; e = e.parentElement) {
        const colour = number(getComputedStyle(e).backgroundColor);
        if (colour.length == 3 || colour[3] == 1) return colour;
    }
    return [255, 255, 255];
};
for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg')) continue;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (box.width == 0 || style.visibility == 'hidden' || style.position == 'absolute' && style.clipPath != 'none' || e.closest('thead')) continue;
    if (box.right > width + 1 && !e.closest('.scroll')) wrong.push(`${name(e)} ends at ${box.right}`);
    const says = [...e.childNodes].some((n) => n.nodeType == 3 && n.textContent.trim());
    if (!says) continue;
    const [a, b] = [light(number(style.color)), light(behind(e))].sort((x, y) => y - x), contrast = (a + 0.05) / (b + 0.05);
    if (contrast < least) wrong.push(`${name(e)} has a contrast of ${contrast.toFixed(2)}`);
    if (parseFloat(style.fontSize) < 11) wrong.push(`${name(e)} has letters of ${style.fontSize}`);
}
if (performance.getEntriesByType('resource').length) wrong.push('it loads something else');
if (!document.querySelector('h1')) wrong.push('it has no headline');
return wrong.slice(0, 10);
"""

# Until it is painted.
PAINTED = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));"


class Browser:
    """A session of chromedriver."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        self.session = ""

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + self.session + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {json.load(error)['value']['message']}") from error

    def start(self, profile):
        chrome = {"args": FLAGS + [f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = f"/session/{self.call('POST', '/session', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def tools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script, *arguments, kind="sync"):
        return self.call("POST", f"/execute/{kind}", {"script": script, "args": list(arguments)})


@contextlib.contextmanager
def browser():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            session = Browser(port)
            for _ in range(100):
                with contextlib.suppress(OSError):
                    session.call("GET", "/status")
                    break
                time.sleep(0.1)
            session.start(profile)
            yield session
            session.call("DELETE", "")
        finally:
            driver.terminate()
            driver.wait()


def look(session, page, kind, scheme, picture):
    """What is wrong with a page, and how long it took to be painted."""
    width = WIDTHS[kind]
    phone = kind == "phone"
    session.tools("Emulation.setDeviceMetricsOverride", width=width, height=780, deviceScaleFactor=2 if phone else 1, mobile=phone)
    session.tools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    session.call("POST", "/se/log", {"type": "browser"})
    start = time.monotonic()
    session.call("POST", "/url", {"url": page.resolve().as_uri()})
    session.run(PAINTED, kind="async")
    seconds = time.monotonic() - start
    wrong = session.run(PROBLEMS, width, LEAST_CONTRAST)
    wrong += [entry["message"] for entry in session.call("POST", "/se/log", {"type": "browser"})]
    if seconds > MAX_SECONDS:
        wrong.append(f"it took {seconds:.1f} s")
    height = min(session.run("return document.documentElement.scrollHeight"), MAX_HEIGHT)
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    image = session.tools("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    picture.write_bytes(base64.b64decode(image["data"]))
    return wrong, seconds


def main():
    pictures, pages = pathlib.Path(sys.argv[1]), [pathlib.Path(p) for p in sys.argv[2:]]
    pictures.mkdir(parents=True, exist_ok=True)
    failed = False
    with browser() as session:
        for page in pages:
            size = page.stat().st_size
            if size > MAX_BYTES:
                failed = True
                print(f"FAILED {page.name}: {size} bytes")
            if re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", page.read_text("utf-8")):
                failed = True
                print(f"FAILED {page.name}: has scripts or names other places")
            for kind in WIDTHS:
                for scheme in ("light", "dark"):
                    wrong, seconds = look(session, page, kind, scheme, pictures / f"{page.stem}-{kind}-{scheme}.png")
                    failed |= bool(wrong)
                    print(f"{'FAILED' if wrong else 'ok'} {page.name} {kind} {scheme}: {size} bytes, {seconds:.2f} s" + "".join(f"\n    {w}" for w in wrong))
    sys.exit(failed)


if __name__ == "__main__":
    main()
