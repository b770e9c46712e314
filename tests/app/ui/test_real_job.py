"""The whole job in a real browser and through gradio_client: the real server, worker and Hub clients."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gradio_client import Client

from qlora_space.app.actions import Actions
from qlora_space.core.demo import HELDOUT_FILE, TRAIN_FILE
from qlora_space.core.settings import Settings
from qlora_space.runs import RunFolder
from tests.fake_hub import ALICE, FakeHub
from tests.train.small import tiny_base

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).parents[3]
STEPS = 12
# Few rows and large updates: short, but long enough to be watched.
SETTINGS = {
    "max-steps": STEPS,
    "gradient-accumulation-steps": 2,
    "eval-steps": 6,
    "max-rows": 120,
    "eval-fraction": 0.1,
    "num-samples": 1,
}
CARD = """---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/train.jsonl}, {split: test, path: easy/test.jsonl}]
- config_name: hard
  data_files: [{split: train, path: hard/train.jsonl}]
---
"""


@dataclass(frozen=True)
class Server:
    url: str
    home: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python app.py` as a person starts it, logged in as alice with `hf auth login`."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(ALICE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "QLORA_SPACE_HOME": str(folder / "home"),
        "GRADIO_SERVER_PORT": str(port),
        "HF_TOKEN_PATH": str(folder / "token"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    while not _answers(port):
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    yield Server(f"http://127.0.0.1:{port}/", folder / "home")
    actions = Actions(Settings(home=folder / "home"))
    for run, view in actions.runs():
        if not view.is_over:
            actions.stop(run, keep=False)
    process.terminate()
    process.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def context(browser: "Browser") -> Iterator["BrowserContext"]:
    opened = browser.new_context(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(240_000)  # other work may have the cores
    yield opened
    opened.close()


def says(page: "Page", selector: str, words: str | re.Pattern[str]) -> None:
    page.locator(selector).filter(has_text=words).first.wait_for()


def choose_dataset(page: "Page", name: str) -> None:
    box = page.locator("#field-dataset input")
    box.fill(name)
    box.press("Enter")


def step_shown(page: "Page") -> int:
    found = re.search(r"Step (\d+) of", page.locator("#run-head").inner_text())
    return int(found[1]) if found else 0


@pytest.mark.browser
def test_pick_train_compare_publish_from_the_page(
    context: "BrowserContext", server: Server, hub: FakeHub
) -> None:
    page = context.new_page()
    page.goto(server.url)
    says(page, "#start", "Start training")
    says(page, "#xray-body", "learned")
    says(page, "#account", "Signed in as alice")
    page.locator("#data-options").get_by_text("Data options").click()
    page.locator("#advanced").get_by_text("Advanced").click()
    for name, value in SETTINGS.items():
        page.locator(f"#field-{name} input").fill(str(value))
        page.locator(f"#field-{name} input").press("Tab")
    says(page, "#card-body code", re.compile(f"--max-steps {STEPS}.*--num-samples 1"))
    says(page, "#card-body .summary", f"{STEPS} steps")
    page.locator("#start:enabled").filter(has_text="Start training").click()

    page.wait_for_url(re.compile(r"\?run=[0-9a-f]{32}"))
    run_id = re.search(r"[0-9a-f]{32}", page.url)[0]  # type: ignore[index]
    says(page, "#run-head", re.compile(rf"Step [1-9]\d* of {STEPS}"))
    says(page, "#run-head .progress-words", "left")
    line = page.locator("#charts-body .chart-large .line.train").first
    drawn = line.get_attribute("d")
    page.wait_for_function(
        "d => document.querySelector('#charts-body .chart-large .line.train').getAttribute('d') !== d",
        arg=drawn,
    )
    left_at = step_shown(page)
    page.close()

    page = context.new_page()
    page.goto(f"{server.url}?run={run_id}")
    says(page, "#run-head .chip", re.compile("Training|Finishing"))
    page.wait_for_function(
        "n => (document.querySelector('#run-head').innerText.match(/Step (\\d+)/) || [])[1] > n",
        arg=left_at,
    )
    says(page, "#run-head .chip", "Done")
    says(page, "#run-outcome table", "Exact answers")
    says(page, "#charts-body .best span", "best, step")

    page.get_by_role("tab", name="Compare").click()
    page.locator("#chips button").first.wait_for()
    assert page.locator("#halt").count() == 0 or not page.locator("#halt").is_visible()
    page.locator("#prompt textarea").fill("Hello, this is Mira from Oslo. My new lamp is broken.")
    page.evaluate(
        """() => {
          window.seen = [];
          const record = () => {
            const [base, adapted] = document.querySelectorAll('#panes .pane .answer');
            seen.push([base.innerText.length, adapted.innerText.length].join());
          };
          new MutationObserver(record).observe(document.querySelector('#panes'), {
            childList: true, subtree: true, characterData: true, attributes: true,
          });
        }"""
    )
    page.locator("#run-both").click()
    says(page, "#compare-status", "Same base, verified")
    page.locator("#halt").wait_for(state="hidden")
    assert page.evaluate("new Set(seen).size") > 4, "both answers grow at the same time"

    page.get_by_role("tab", name="Publish").click()
    page.wait_for_function("document.querySelector('#repo :is(input, textarea)')?.value")
    page.locator("#repo :is(input, textarea)").first.fill("alice/from-the-page")
    says(page, "#checklist .ok", "New repository: alice/from-the-page")
    page.locator("#publish:enabled").click()
    says(page, "#published table", "by hash")
    assert page.locator("#published a").get_attribute("href") == f"{hub.url}/alice/from-the-page"
    theirs = hub.repo("model", "alice/from-the-page").files
    adapter = server.home / "runs" / run_id / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert theirs[name] == (adapter / name).read_bytes()
    assert "alice/from-the-page" in theirs["README.md"].decode()

    page.get_by_role("tab", name="Run").click()
    page.locator("#again").click()
    says(page, "#card-body code", f"--max-steps {STEPS}")
    page.locator("#advanced").get_by_text("Advanced").click()
    assert page.locator("#field-max-steps input").input_value() == str(STEPS)
    assert str(server.home) not in page.content()


@pytest.mark.browser
def test_uploads_and_hub_datasets_are_inspected(
    context: "BrowserContext", server: Server, hub: FakeHub, tmp_path: Path
) -> None:
    rows = TRAIN_FILE.read_bytes().splitlines(keepends=True)[:40]
    hub.add_dataset(
        "alice/tickets",
        {
            "README.md": CARD,
            "easy/train.jsonl": b"".join(rows),
            "easy/test.jsonl": HELDOUT_FILE.read_bytes(),
            "hard/train.jsonl": b"".join(rows[:20]),
        },
    )
    file = tmp_path / "ferry.csv"
    file.write_text("question,answer\n" + "Where is the ferry?,In Olm.\n" * 30)
    page = context.new_page()
    page.goto(server.url)
    says(page, "#start", "Start training")
    page.locator("input[type=file]").first.set_input_files(file)
    says(page, "#data-facts", "From the columns “question” as prompt, “answer” as completion.")
    says(page, "#data-facts td", "Where is the ferry?")
    says(page, "#xray-body .tokens", "In Olm.")
    says(page, "#card-body code", "--dataset ferry.csv")
    assert list((server.home / "gradio").rglob("ferry.csv")), "not in a folder that all can read"

    box = page.locator("#field-dataset input")
    box.click()
    box.fill("")
    box.press_sequentially("ticke", delay=40)
    page.get_by_role("option", name="alice/tickets").wait_for()
    searched = [seen.query for seen in hub.requests if seen.path == "/api/datasets"]
    assert len(searched) <= 2, "one search once typing pauses, not one for every key"
    while "active" not in (
        page.get_by_role("option", name="alice/tickets").get_attribute("class") or ""
    ):
        box.press("ArrowDown")
    box.press("Enter")
    says(page, "#data-facts", re.compile(r"Rows\s*40"))
    says(page, "#data-facts", "Chat messages. Detected. From the column “messages”.")
    page.locator("#field-dataset-config input").click()
    page.get_by_role("option", name="hard").click()
    says(page, "#data-facts", re.compile(r"Rows\s*20"))
    choose_dataset(page, "alice/nowhere")
    says(page, "#data-facts", "alice/nowhere")
    says(page, "#start", "Fix the dataset")
    assert str(server.home) not in page.content()


def test_every_endpoint_keeps_its_contract(server: Server, hub: FakeHub) -> None:
    client = Client(server.url, verbose=False)
    found = client.predict({"dataset": "demo"}, api_name="/inspect")
    assert (found["format"], found["num_rows"]) == ("messages", 1000)
    settings = {"max_steps": 5000, "max_rows": 120, "num_samples": 0}
    settings |= {"eval_fraction": 0.05, "name": "By program", "base": str(tiny_base())}
    plan = client.predict(settings, api_name="/plan")
    assert plan["estimate"]["steps"] == 5000
    run_id = client.predict(settings, api_name="/start")["run_id"]
    other = settings | {"name": "Behind it"}
    second = client.predict(other, api_name="/start")["run_id"]  # at once, and yet the second
    _events(client, second, lambda all: any(e.get("name") == "queue" for e in all))
    assert client.predict(second, False, api_name="/stop")["status"] == "cancelled"
    events = _events(client, run_id, lambda all: any(e.get("step", 0) >= 2 for e in all))
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert client.predict(run_id, 3, api_name="/events")[0] == events[3]
    assert client.predict(run_id, True, api_name="/stop")["run_id"] == run_id
    events = _events(client, run_id, lambda all: all[-1]["kind"] in ("finished", "failed"))
    assert (events[-1]["kind"], events[-1]["stopped_by_hand"]) == ("finished", True)
    report = RunFolder(server.home / "runs" / run_id).report()
    assert report is not None
    assert report.stopped_by_hand
    assert 2 <= report.steps < 5000

    job = client.submit(run_id, "Hello?", "", {"max_new_tokens": 8}, api_name="/compare")
    done = job.result()
    assert (done["kind"], done["same_base"]) == ("done", True)
    kinds = [reply["kind"] for reply in job.outputs()]
    assert kinds.count("chunk") > 2
    published = client.predict(run_id, "alice/by-program", True, api_name="/publish")
    repo = hub.repo("model", "alice/by-program")
    ours = set(repo.files) - {".gitattributes"}  # that one is the Hub's
    assert (published["commit"], published["num_files"]) == (repo.head.sha, len(ours))
    assert repo.private
    assert "adapter_model.safetensors" in repo.files
    answers = json.dumps([found, plan, events, done, published])
    assert ALICE not in answers


def _events(client: Client, run_id: str, enough) -> list[dict]:
    deadline = time.monotonic() + 240  # other work may have the cores
    while not (found := client.predict(run_id, 0, api_name="/events")) or not enough(found):
        assert time.monotonic() < deadline, found[-3:]
        time.sleep(0.2)
    return found
