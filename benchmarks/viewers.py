"""Many people watch one run: how old an event is when they see it, and what each of them costs the server.

    python benchmarks/viewers.py --viewers 200            # HTTP clients on loopback, in a process of their own
    python benchmarks/viewers.py --tabs 20                # tabs of a real browser (playwright, Chromium)

Serves a home with one run of --steps steps, to which --rate events a second are appended, and prints one JSON line:
the age of events in milliseconds, milliseconds of the server's CPU for each viewer and second, and its memory
in MiB, every few seconds.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from served_page import served_page

from qlora_space.app.actions import Actions
from qlora_space.core.events import Metric, Phase, Started, event_to_line
from qlora_space.core.processes import start_time
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.runs import EventLog, RunFolder, create_run, read_events

Arrivals = list[tuple[int, float]]  # events that a viewer has seen, and when, in Unix seconds
_ROOT = Path(__file__).parent.parent
_SEEN = re.compile(rb"^id: (\d+)")
_TOTAL_STEPS = 100_000
# The newest step in the log of a page, whenever the page changes.
_WATCH = """
window.arrivals = [];
let last = 0;
new MutationObserver(() => {
  const found = document.querySelector("#log li")?.textContent.match(/Step ([\\d,]+) of/);
  const step = found ? Number(found[1].replaceAll(",", "")) : 0;
  if (step > last) window.arrivals.push([(last = step), Date.now() / 1000]);
}).observe(document, {childList: true, subtree: true, characterData: true});
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--viewers", type=int, default=0)
    parser.add_argument("--tabs", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=5.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--settle-seconds", type=float, default=15.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = long_run(Path(folder), options.steps)
        with served_page(folder) as (url, server), growing(run, options.steps, options.rate):
            seconds = options.settle_seconds + options.seconds
            look = watch_in_browser if options.tabs else watch_over_http
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                num = options.tabs or options.viewers
                seen = pool.apply_async(look, (url, run.id, num, seconds))
                time.sleep(options.settle_seconds)
                since, line = time.time(), measured(server, num, options.seconds)
                arrivals = seen.get(seconds + 300)
        print(json.dumps(line | ages(run, arrivals, since)), flush=True)


def long_run(home: Path, num_steps: int) -> RunFolder:
    """A run of the demo that trains since `num_steps` steps; this process passes for its worker."""
    actions = Actions(Settings(home=home))
    run = create_run(
        actions.settings.runs_folder, TrainingRequest(), actions.plan(TrainingRequest())
    )
    actions.close()
    began = time.time() - num_steps
    pid = os.getpid()
    events = [
        Started(place="CPU", pid=pid, pid_start_time=start_time(pid), time=began),
        Phase(name="train", done=0, total=_TOTAL_STEPS, time=began, seq=1),
    ]
    events += [
        metric(i, began + i).model_copy(update={"seq": i + 1}) for i in range(1, num_steps + 1)
    ]
    run.events_file.write_text("".join(event_to_line(event) + "\n" for event in events))
    return run


def metric(step: int, at: float = 0.0) -> Metric:
    wobble = (step * 7919 % 101) / 101
    values = {
        "loss": 0.5 + 3 / (1 + step / 500) + 0.2 * wobble,
        "learning_rate": 2e-4 * (1 - step / _TOTAL_STEPS),
        "grad_norm": 0.4 + wobble,
        "epoch": 3 * step / _TOTAL_STEPS,
        "tokens_per_second": 3300 + 200 * wobble,
        "memory_gib": 1.2 + 0.01 * wobble,
        "peak_gib": 1.34,
    }
    return Metric(step=step, total_steps=_TOTAL_STEPS, values=values, time=at)


@contextmanager
def growing(run: RunFolder, num_steps: int, rate: float) -> Iterator[None]:
    """Further steps, `rate` a second."""
    done = threading.Event()

    def grow() -> None:
        log, step, began = EventLog(run.events_file), num_steps, time.monotonic()
        while not done.wait(max(0.0, began + (step - num_steps) / rate - time.monotonic())):
            step += 1
            log.append(metric(step))
        log.close()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measured(server: psutil.Process, num_viewers: int, seconds: float) -> dict[str, object]:
    """CPU and memory of the server process."""
    before, memory = server.cpu_times(), []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        memory.append(round(server.memory_info().rss / 2**20))
        time.sleep(min(10.0, seconds))
    after, took = server.cpu_times(), time.monotonic() - began
    used = after.user + after.system - before.user - before.system
    return {
        "viewers": num_viewers,
        "cpu_ms_per_viewer_second": round(1000 * used / took / num_viewers, 2),
        "cores": round(used / took, 2),
        "rss_mib": memory,
        "load": os.getloadavg()[0],
    }


def ages(run: RunFolder, arrivals: list[Arrivals], since: float) -> dict[str, object]:
    """Milliseconds from an event's time to its first arrival, of events from Unix time `since` on."""
    events = {event.seq: event.time for event in read_events(run.events_file)[0]}
    found: list[float] = []
    missing = 0
    for seen in arrivals:
        if not seen:
            missing += 1
            continue
        for (before, _), (upto, at) in itertools.pairwise(seen):
            found += [
                1000 * (at - events[seq])
                for seq in range(before, upto)
                if events.get(seq, 0.0) > since
            ]
    found.sort()
    return {
        "events_seen": len(found),
        "viewers_without_any": missing,
        "age_p50_ms": round(statistics.median(found)) if found else None,
        "age_p95_ms": round(found[int(0.95 * len(found))]) if found else None,
        "age_max_ms": round(found[-1]) if found else None,
    }


def watch_over_http(url: str, run_id: str, num: int, seconds: float) -> list[Arrivals]:
    """What each of `num` clients was sent, and when."""
    return asyncio.run(_watch_over_http(url, run_id, num, seconds))


async def _watch_over_http(url: str, run_id: str, num: int, seconds: float) -> list[Arrivals]:
    host, port = url.removeprefix("http://").split(":")
    seen: list[Arrivals] = [[] for _ in range(num)]

    async def look(arrivals: Arrivals) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        request = f"GET /runs/{run_id}/stream HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
        writer.write(request.encode())
        while True:
            found = _SEEN.match(await reader.readline())
            if found:
                arrivals.append((int(found[1]), time.time()))

    tasks = [asyncio.create_task(look(arrivals)) for arrivals in seen]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    return seen


def watch_in_browser(url: str, run_id: str, num: int, seconds: float) -> list[Arrivals]:
    """What each of `num` tabs showed, and when. A tab shows step N where N + 1 events were seen, and one more."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        pages, ends = [], time.monotonic() + seconds
        for _ in range(num):
            context = browser.new_context(
                viewport={"width": 1280, "height": 900},
                reduced_motion="reduce",  # so many tabs are never in sight at once: none draws a wheel that turns
            )
            page = context.new_page()
            page.add_init_script(_WATCH)
            page.goto(f"{url}/?run={run_id}", wait_until="commit")
            pages.append(page)
            page.locator("#log li").first.wait_for(timeout=240_000)
        pages[0].wait_for_timeout(max(1.0, ends - time.monotonic()) * 1000)
        found = [page.evaluate("window.arrivals") for page in pages]
        browser.close()
    return [[(step + 2, at) for step, at in arrivals] for arrivals in found]


if __name__ == "__main__":
    main()
