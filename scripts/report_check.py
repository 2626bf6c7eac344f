"""Look at report.html as a browser and its users do: in a headless Chromium, in the light and in the dark.

    make report-check                                  pages of digits and of the largest report there can be
    python scripts/report_check.py features/report.html --pictures shots/

For each page: it logs and asks for nothing, no picture is empty, nothing is wider than a phone, and axe-core
finds nothing. With `--pictures`, screenshots of a desktop, a phone, the dark and the printed pages lie there to be
looked at. Needs Chromium (Debian: chromium) and axe-core (npm: axe-core); `--axe` says where its axe.min.js lies.
"""

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
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions"),
    *("--disable-component-update", "--disable-sync", "--no-first-run", "--disable-default-apps", "--mute-audio"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # what it would say to its makers
    *("--hide-scrollbars", "--virtual-time-budget=10000", "--disable-features=Translate,OptimizationHints,MediaRouter"),
)
DARK = "--blink-settings=preferredColorScheme=0"
WIDTHS = {"desktop": 1280, "phone": 390}

# What the page itself says of itself; it goes behind the page's own end, so that nothing of it is what is looked at.
LOOK = """
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
  const told = rule => ({id: rule.id, help: rule.help, n: rule.nodes.length, first: rule.nodes[0].html.slice(0, 200),
    why: rule.nodes[0].failureSummary});
  found.violations = axe_found.violations.map(told);
  found.incomplete = axe_found.incomplete.map(told);
  found.asked = performance.getEntriesByType("resource").map(each => each.name);
  parent.postMessage(JSON.stringify(found), "*");
})();
</script>
"""
# No window of Chromium's is as narrow as a phone, but a frame may be.
FRAME = """<!DOCTYPE html><html><body style="margin: 0"><script>
addEventListener("message", event => {
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = event.data;
  document.body.append(told);
});
</script><iframe src="%s" width="%d" height="%d" style="border: 0"></iframe></body></html>
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Look at each page, say what is wrong, and return how many faults there are, 1 at most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="where screenshots go")
    parser.add_argument("--axe", type=Path, default=Path(".report-check/node_modules/axe-core/axe.min.js"))
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    options = parser.parse_args(argv)
    faults = [fault for page in options.pages for fault in looked_at(page, options)]
    print("\n".join(faults) or f"{len(options.pages)} pages: nothing to find fault with.")
    return bool(faults)


def looked_at(page: Path, options: argparse.Namespace) -> list[str]:
    """What is wrong with a page."""
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(options.chromium, Path(folder))
        faults = [f"logs {line}" for line in browser.logged(page)]
        probe = Path(folder) / "probe.html"
        axe = options.axe.read_text().replace("</script", "<\\/script")
        probe.write_text(page.read_text().replace("</body>", f"<script>{axe}</script>{LOOK}</body>"))
        heights = {}
        for name, how in {"desktop": [], "phone": [], "dark": [DARK]}.items():
            width = WIDTHS.get(name, WIDTHS["desktop"])
            found = browser.found(probe, width, how)
            heights[name] = found["height"]
            faults += [f"{name}: {fault}" for fault in _faults(found, width, is_dark=bool(how))]
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            for name, height in heights.items():
                target = options.pictures / f"{page.parent.name}-{name}.png"
                size = WIDTHS.get(name, WIDTHS["desktop"]), height
                browser.pictured(page, target, size, [DARK] if name == "dark" else [])
            browser.printed(page, options.pictures / f"{page.parent.name}.pdf")
    return [f"{page}: {fault}" for fault in faults]


def _faults(found: dict[str, Any], width: int, is_dark: bool) -> list[str]:
    faults = [
        f"{each['id']} x {each['n']}: {each['help']}: {each['why']}: {each['first']}" for each in found["violations"]
    ]
    unsure = [each for each in found["incomplete"] if each["id"] != "color-contrast"]  # of text over a picture
    faults += [f"axe cannot tell: {each['id']}: {each['help']}: {each['first']}" for each in unsure]
    for each in found["pictures"]:
        if each["drawn"] < 2 or min(each["width"], each["height"]) < 10:
            faults.append(f"an empty picture: {each}")
    if not found["pictures"]:
        faults.append("no picture at all")
    faults += [f"asks for {url[:200]}" for url in found["asked"]]
    if found["broken"]:
        faults.append(f"{found['broken']} images cannot be decoded")
    if found["width"] > width:
        faults.append(f"{found['width']} pixels wide, expected {width} at most")
    if found["dark"] != is_dark:
        faults.append(f"the colours are dark: {found['dark']}, expected {is_dark}")
    return faults


class Browser:
    """A Chromium without a window, each time a fresh one."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def logged(self, page: Path) -> list[str]:
        """What it says of the page on its console."""
        done = self._run([*QUIET, "--enable-logging=stderr", "--dump-dom"], page)
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def found(self, probe: Path, width: int, how: Sequence[str]) -> dict[str, Any]:
        """What the probe says."""
        done = self._run([*QUIET, *how, "--dump-dom"], self._framed(probe, (width, 2000)))
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        if not found:
            raise SystemExit(f"{probe}: Chromium says nothing: {done.stderr[-2000:]}")
        return dict(json.loads(unescape(found[1])))

    def pictured(self, page: Path, target: Path, size: tuple[int, int], how: Sequence[str]) -> None:
        """A screenshot."""
        window = f"--window-size={max(size[0], 500)},{size[1]}"
        self._run([*QUIET, *how, window, f"--screenshot={target.resolve()}"], self._framed(page, size))

    def printed(self, page: Path, target: Path) -> None:
        """What a printer would get."""
        self._run([*QUIET, "--no-pdf-header-footer", f"--print-to-pdf={target.resolve()}"], page)

    def _framed(self, page: Path, size: tuple[int, int]) -> Path:
        path = self._folder / "frame.html"
        path.write_text(FRAME % (page.resolve().as_uri(), *size))
        return path

    def _run(self, flags: Sequence[str], page: Path) -> subprocess.CompletedProcess[str]:
        home = tempfile.mkdtemp(dir=self._folder)
        command = [self._program, *flags, f"--user-data-dir={home}", page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
