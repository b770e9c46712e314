"""Opening the page, as a visitor's browser sees it: seconds until Start can be pressed, layout shift, Tab presses to
Start, bytes and requests.

    python benchmarks/page_time.py --repeats 3

Serves the page on a free port with an empty home, waits until its processes have warmed up, and opens it in a fresh
browser context each time. Prints one JSON line per opening; the first is the first visitor's.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from served_page import served_page

_MOST_TABS = 120
# Sums every shift that no input caused, and notes when Start can first be pressed.
_WATCH = """
window.shift = 0; window.shifts = []; window.readyAt = null;
new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
  if (entry.hadRecentInput) return;
  window.shift += entry.value;
  const names = entry.sources.map((source) => source.node?.id || source.node?.className || source.node?.nodeName);
  window.shifts.push([Math.round(entry.startTime), Number(entry.value.toFixed(3)), names.join(" | ").slice(0, 200)]);
})).observe({type: "layout-shift", buffered: true});
const look = () => {
  const start = document.querySelector("#start");
  if (start && !start.disabled) window.readyAt = performance.now();
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--warm-up-seconds", type=float, default=15.0)
    parser.add_argument("--shifts", action="store_true", help="name what moved")
    options = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        served_page(home) as (url, _),
        sync_playwright() as playwright,
    ):
        time.sleep(options.warm_up_seconds)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(options.repeats):
            line = opened(browser, url, (options.width, options.height))
            if not options.shifts:
                del line["shifts"]
            print(json.dumps(line), flush=True)


def opened(browser: Browser, url: str, size: tuple[int, int]) -> dict[str, object]:
    """The figures of one opening."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    received: list[int] = []
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    page.add_init_script(_WATCH)
    page.goto(url)
    page.wait_for_function("window.readyAt !== null", timeout=60_000)
    page.wait_for_timeout(2_000)
    line: dict[str, object] = {
        "start_ready_seconds": round(page.evaluate("window.readyAt") / 1000, 2),
        "layout_shift": round(page.evaluate("window.shift"), 3),
        "kilobytes": round(sum(received) / 1000),
        "requests": len(received),
        "start_top": page.evaluate(
            "Math.round(document.querySelector('#start').getBoundingClientRect().top)"
        ),
        "page_height": page.evaluate("document.documentElement.scrollHeight"),
        "tabs_to_start": tabs_to(page, "start"),
        "shifts": page.evaluate("window.shifts"),
    }
    context.close()
    return line


def tabs_to(page: Page, elem_id: str) -> int | None:
    """Presses of Tab from the top of the page to that element."""
    for presses in range(1, _MOST_TABS + 1):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == elem_id:
            return presses
    return None


if __name__ == "__main__":
    main()
