"""Check report.html in a headless Chromium, in light and dark colours.

    make report-check                                  check the pages of digits and of the largest possible report
    python scripts/report_check.py features/report.html --pictures shots/

Each page must log nothing, request nothing, contain no empty picture, fit the width of a phone, and pass axe-core.
`--pictures` writes screenshots of the page on a desktop, a tablet and a phone, in dark colours and in print. The script
needs Chromium (Debian: chromium) and axe-core (npm: axe-core); `--axe` is the path of its axe.min.js.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-default-apps",
    "--mute-audio",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no requests to the vendor of Chromium
    "--hide-scrollbars",
    "--virtual-time-budget=10000",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
)
DARK = "--blink-settings=preferredColorScheme=0"
# Width and flags of each view.
VIEWS: dict[str, tuple[int, list[str]]] = {
    "desktop": (1280, []),
    "tablet": (768, []),
    "phone": (390, []),
    "dark": (1280, [DARK]),
}

# JavaScript that examines the page. It is added at the end of the body, so that it does not examine itself.
PROBE = """
<script>
(async () => {
  const found = {height: document.documentElement.scrollHeight, width: document.documentElement.scrollWidth};
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  found.pictures = [...document.querySelectorAll("svg")].map(svg => {
    const size = svg.getBoundingClientRect();
    const drawn = [...svg.querySelectorAll("path,rect,polyline,circle,image")].filter(shape => {
      const box = shape.getBBox();
      return box.width > 0 || box.height > 0;
    });
    return {title: svg.querySelector("title").textContent, width: size.width, height: size.height, drawn: drawn.length};
  });
  found.broken = 0;
  await Promise.all([...document.querySelectorAll("image")].map(each => new Promise(done => {
    const loaded = new Image();
    loaded.onload = done;
    loaded.onerror = () => { found.broken++; done(); };
    loaded.src = each.getAttribute("href");
  })));
  const axe_found = await axe.run(document, {resultTypes: ["violations", "incomplete"]});
  const summary = rule => ({id: rule.id, help: rule.help, n: rule.nodes.length, first: rule.nodes[0].html.slice(0, 200),
    why: rule.nodes[0].failureSummary});
  found.violations = axe_found.violations.map(summary);
  found.incomplete = axe_found.incomplete.map(summary);
  found.requests = performance.getEntriesByType("resource").map(each => each.name);
  parent.postMessage(JSON.stringify(found), "*");
})();
</script>
"""
# A window of Chromium cannot be as narrow as a phone, but a frame can.
FRAME = """<!DOCTYPE html><html><body style="margin: 0"><script>
addEventListener("message", event => {
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = event.data;
  document.body.append(result);
});
</script><iframe src="%s" width="%d" height="%d" style="border: 0"></iframe></body></html>
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check the pages, print their faults, and return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="directory of screenshots")
    parser.add_argument("--axe", type=Path, default=Path(".report-check/node_modules/axe-core/axe.min.js"))
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    options = parser.parse_args(argv)
    axe = options.axe.read_text().replace("</script", "<\\/script")
    faults = []
    for page in options.pages:
        with tempfile.TemporaryDirectory() as folder:
            browser = Browser(options.chromium, Path(folder))
            faults += [f"{page}: {fault}" for fault in check_page(page, browser, axe, options.pictures)]
    print("\n".join(faults) or f"{len(options.pages)} pages: no faults found.")
    return int(bool(faults))


def check_page(page: Path, browser: Browser, axe: str, pictures: Path | None) -> list[str]:
    """Return the faults of a page in all views, and take pictures of them."""
    faults = [f"logs {line}" for line in browser.console_lines(page)]
    probe = browser.folder / "probe.html"
    probe.write_text(page.read_text().replace("</body>", f"<script>{axe}</script>{PROBE}</body>"))
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        browser.print_to_pdf(page, pictures / f"{page.parent.name}.pdf")
    for name, (width, flags) in VIEWS.items():
        found = browser.run_probe(probe, width, flags)
        faults += [f"{name}: {fault}" for fault in find_faults(found, width, is_dark=DARK in flags)]
        if pictures:
            target = pictures / f"{page.parent.name}-{name}.png"
            browser.take_screenshot(page, target, (width, found["height"]), flags)
    return faults


def find_faults(found: dict[str, Any], width: int, is_dark: bool) -> list[str]:
    """Return the faults in the results of a probe."""
    faults = [*accessibility_faults(found), *picture_faults(found)]
    faults += [f"requests {url[:200]}" for url in found["requests"]]
    if found["width"] > width:
        faults.append(f"{found['width']} pixels wide, expected at most {width}")
    if found["dark"] != is_dark:
        faults.append(f"the colours are dark: {found['dark']}, expected {is_dark}")
    return faults


def accessibility_faults(found: dict[str, Any]) -> list[str]:
    """Return the violations that axe-core found, and the rules that it could not decide."""
    faults = []
    for rule in found["violations"]:
        faults.append(f"{rule['id']} x {rule['n']}: {rule['help']}: {rule['why']}: {rule['first']}")
    for rule in found["incomplete"]:
        if rule["id"] != "color-contrast":  # undecided for text on a picture
            faults.append(f"axe cannot decide {rule['id']}: {rule['help']}: {rule['first']}")
    return faults


def picture_faults(found: dict[str, Any]) -> list[str]:
    """Return which pictures are missing or empty."""
    faults = []
    if not found["pictures"]:
        faults.append("contains no picture, expected at least one")
    for picture in found["pictures"]:
        if picture["drawn"] < 2 or min(picture["width"], picture["height"]) < 10:
            faults.append(f"contains an empty picture: {picture}")
    if found["broken"]:
        faults.append(f"{found['broken']} images cannot be decoded")
    return faults


class Browser:
    """A headless Chromium with a new profile for each call."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self._program = program

    def console_lines(self, page: Path) -> list[str]:
        """Return the lines that a page logs to the console."""
        done = self._run([*QUIET, "--enable-logging=stderr", "--dump-dom"], page)
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def run_probe(self, probe: Path, width: int, flags: Sequence[str]) -> dict[str, Any]:
        """Return the results of the probe."""
        done = self._run([*QUIET, *flags, "--dump-dom"], self._framed(probe, (width, 2000)))
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        if not found:
            raise SystemExit(f"{probe}: no results from Chromium: {done.stderr[-2000:]}")
        return dict(json.loads(unescape(found[1])))

    def take_screenshot(self, page: Path, target: Path, size: tuple[int, int], flags: Sequence[str]) -> None:
        """Write a PNG of the whole page."""
        window = f"--window-size={max(size[0], 500)},{size[1]}"
        self._run([*QUIET, *flags, window, f"--screenshot={target.resolve()}"], self._framed(page, size))

    def print_to_pdf(self, page: Path, target: Path) -> None:
        """Write the printed page."""
        self._run([*QUIET, "--no-pdf-header-footer", f"--print-to-pdf={target.resolve()}"], page)

    def _framed(self, page: Path, size: tuple[int, int]) -> Path:
        """Write a page that shows another page in a frame of the given size."""
        path = self.folder / "frame.html"
        path.write_text(FRAME % (page.resolve().as_uri(), *size))
        return path

    def _run(self, flags: Sequence[str], page: Path) -> subprocess.CompletedProcess[str]:
        home = tempfile.mkdtemp(dir=self.folder)
        command = [self._program, *flags, f"--user-data-dir={home}", page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
