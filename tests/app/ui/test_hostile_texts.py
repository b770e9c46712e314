"""Texts of strangers in a real browser: wherever one can stand, it does nothing and is not what it does not look like.

A browser opens every view with some 400 hostile texts in every place that a stranger can write to, while dialogs,
requests, windows and elements are watched. What is missing from a view fails too: a place without texts proves nothing.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from typing_extensions import override

from qlora_space.core.comparison import (
    AS_TRAINED,
    MOST_QUESTIONS,
    Chunk,
    ComparedRow,
    CompareOptions,
    Done,
    Loading,
    PaneAnswer,
    Question,
    Reply,
    TokenOdds,
)  # fmt: skip
from qlora_space.core.errors import HubError
from qlora_space.core.events import Failed, Finished, Gate, Metric, Note, Phase, Sample, Started
from qlora_space.core.facts import ModelFacts
from qlora_space.core.inspection import Change, Inspection, Problem, SampleRow, Token
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.hub import ModelHit, Published, Target
from qlora_space.hub.account import Account
from qlora_space.hub.deploy import Deployment, SpaceSettings
from qlora_space.runs import EventLog, Publication, PushRequest, RunFolder, create_run
from qlora_space.runs.sharing import share, shared_address
from tests.app.ui.conftest import says, serving
from tests.app.ui.fake import BASES, POINTS, FakeActions, finished_report, inspection
from tests.app.ui.hostile import MARK, Watch, hostile_texts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
TEXTS = hostile_texts()
MARKS = {MARK.findall(text)[0] for text in TEXTS}
_OPTIONS = "li[data-testid=dropdown-option]"  # of the box that is open
_NUM_VIEWS = 2
VIEWS = [TEXTS[first::_NUM_VIEWS] for first in range(_NUM_VIEWS)]  # of these each has one


class HostileActions(FakeActions):
    """Whoever wrote the data, the base, the Hub's answers and the account's name means harm."""

    texts = VIEWS[0]

    @property
    def soup(self) -> str:
        """All of them in a place that holds one."""
        return " ".join(self.texts)

    @override
    def plan_deployment(self, repo: str, settings: SpaceSettings) -> Deployment:
        changes, notes = tuple(self.texts), (self.soup,)
        return Deployment(self.soup[:200], "https://huggingface.co/spaces/a/b", changes, notes)

    @override
    def base_facts(self, request: TrainingRequest) -> ModelFacts:
        names = ("id", "architecture", "model_type", "license")
        return BASES["demo"].model_copy(update=dict.fromkeys(names, self.soup) | {"source": "hub"})

    @override
    def _inspected(self, request: TrainingRequest) -> tuple[ModelFacts, Inspection]:
        found = inspection("demo")
        names = ("id", "config", "split", "license")
        facts = found.dataset.model_copy(update=dict.fromkeys(names, self.soup))
        update = {
            "dataset": facts,
            "reason": self.soup,
            "confidence": 0.75,
            "columns": tuple(self.texts),
            "parts": (self.soup, *self.texts[:9]),
            "mapping": {"prompt": self.texts[0], self.soup: self.texts[1]},
            "instruction": self.soup,
            "problems": tuple(_problems(self.texts)),
            "samples": tuple(_rows(self.texts)),
            "packed": tuple(_rows(self.texts)),
            "preview": (dict(zip(self.texts, self.texts, strict=True)),),
            "configs": tuple(self.texts),
            "splits": tuple(self.texts),
            "eval_split": self.soup,
        }
        return self.base_facts(request), found.model_copy(update=update)

    @override
    def search_datasets(self, text: str) -> list[str]:
        return TEXTS

    @override
    def search_bases(self, text: str) -> list[ModelHit]:
        return [ModelHit(text, 0, 10**9, False, self.soup[:100]) for text in TEXTS]

    @override
    def read_account(self) -> Account | None:
        return Account(name=self.soup[:2000], orgs=(*self.texts, "acme"), can_write=True)

    @override
    def read_target(self, run: RunFolder, repo: str) -> Target:
        return Target("ours")

    @override
    def heldout_questions(self, run: RunFolder, count: int = MOST_QUESTIONS) -> list[Question]:
        return [Question(prompt=t, expected=t, system=t) for t in self.texts]

    @override
    def compare(
        self,
        run: RunFolder,
        questions: Sequence[Question],
        options: CompareOptions = AS_TRAINED,
        others: Sequence[Path] = (),
    ) -> Iterator[Reply]:
        yield Loading(text=self.soup)
        for text in self.texts[:9]:
            yield Chunk(pane="base", text=text)
        all_texts = "\n".join(self.texts)
        odds = [TokenOdds(text=t, base=-1, adapted=0, rival=t) for t in self.texts]
        adapted = PaneAnswer(text=f"{all_texts}\n.", tokens=tuple(odds))
        rows = [
            ComparedRow(**dict(q), answers=(PaneAnswer(text=all_texts), adapted)) for q in questions
        ]
        yield Done(
            rows=tuple(rows), base_fingerprint=self.soup, same_base=True, prompt_tokens=1,
            tokens_per_second=1.0, seconds=1.0,
        )  # fmt: skip

    @override
    def publish(self, run: RunFolder, push: PushRequest) -> Published:
        raise HubError(self.soup, self.soup)


def _problems(texts: list[str]) -> Iterator[Problem]:
    for number, text in enumerate(texts):
        values = ("columns", f'{{"prompt": "{number}"}}'), ("instruction", text[:4000])
        field, value = values[number % 2]
        change = Change(field=field, value=value)  # type: ignore[arg-type]
        yield Problem(
            code="x", severity="warning", rows=1, message=text, fix=text, place=text, change=change
        )


def _rows(texts: list[str]) -> Iterator[SampleRow]:
    for number, text in enumerate(texts):
        tokens = (
            Token(id=1, text=text, trained=bool(number % 2), special=bool(number % 3)),
            Token(id=2, text=text[:3], trained=True),
        )
        yield SampleRow(
            tokens=tokens, truncated=bool(number % 5 == 0), num_tokens=4, cut_tokens=tokens, prompt=text, place=text
        )  # fmt: skip


def _run(actions: HostileActions, ending: str, origin: str = "") -> RunFolder:
    """One with the view's texts in its request and plan, and all of them in its events, log and report."""
    request = TrainingRequest(
        name=actions.soup[:80], dataset=actions.soup[:500], base=actions.soup[:500],
        columns={"prompt": actions.soup}, instruction=actions.soup[:4000], hub_model_id=actions.soup[:90],
    )  # fmt: skip
    runs = actions.settings.runs_folder
    run = create_run(runs, request, actions.plan(request), origin=origin)
    (run.path / "name").write_text(actions.soup)  # as in a mirror of somebody else's run
    log = EventLog(run.events_file)
    log.append(Started(place=actions.soup, pid=1, pid_start_time=0.0))
    for step in (1, 2):
        log.append(Metric(step=step, total_steps=2, values={"loss": 1.0, "eval_loss": 1.0}))
        for text in actions.texts:
            log.append(Sample(step=step, prompt=text, expected=text, text=f"{text} {step}"))
    soup = actions.soup
    log.append(Gate(bits=2, points=POINTS, is_broken=False, why=soup, text=soup, init="zero"))
    for text in actions.texts:
        log.append(Note(level="warning", text=text))
    run.log_file.write_text("\n".join(actions.texts))
    if ending == "failed":
        log.append(Failed(cause=actions.soup, hint=actions.soup, line=actions.soup))
        return run
    log.append(Phase(name="report", done=0, total=1))
    log.append(Finished(step=2))
    run.adapter_folder.mkdir()
    (run.adapter_folder / "adapter_model.safetensors").write_bytes(b"")
    run.report_file.write_text(finished_report().model_dump_json())
    where = {"repo": actions.soup, "url": "https://huggingface.co/", "commit": actions.soup}
    run.add_publication(Publication(num_files=1, created=True, time=time.time(), **where))
    return run


@dataclass(frozen=True)
class Hostile:
    url: str
    actions: HostileActions
    runs: list[RunFolder]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    actions = HostileActions(Settings(home=tmp_path_factory.mktemp("home")), step_seconds=0.0)
    runs = []
    for ending, actions.texts in (
        ("finished", VIEWS[0]),
        ("finished", VIEWS[1]),
        ("failed", TEXTS),
    ):
        runs.append(_run(actions, ending, runs[0].id if runs else ""))
    for number, text in enumerate(TEXTS):
        named = runs[0].path.with_name(f"{number:032x}")
        shutil.copytree(runs[0].path, named, ignore=shutil.ignore_patterns("events.jsonl", "name"))
        (named / "name").write_text(text)
    with serving(actions) as url:
        yield Hostile(url, actions, runs)


@pytest.fixture
def watch(hostile: Hostile) -> Watch:
    return Watch(hostile.url.rstrip("/"))


@pytest.fixture
def page(browser: "Browser", watch: Watch) -> Iterator["Page"]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    watch.over(context)
    page = context.new_page()
    page.set_default_timeout(30_000)
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    assert page.title() in ("qlora_space", "A shared run · qlora_space")
    context.close()
    assert not watch.found, f"{len(watch.found)} hits: " + "\n".join(watch.found[:20])
    assert not broken


def shows(watch: Watch, *places: str) -> None:
    """All texts were there, but for one that is shortened like a path."""
    missing = {place: len(MARKS - watch.seen[place]) for place in places}
    assert max(missing.values()) <= 1, missing


def test_the_texts_are_as_many_as_promised() -> None:
    assert len(set(TEXTS)) == len(MARKS) > 300


def test_a_dataset_a_base_and_an_account(page: "Page", hostile: Hostile, watch: Watch) -> None:
    for hostile.actions.texts in VIEWS:
        page.goto(hostile.url)
        says(page, "#account", "Signed in as")
        says(page, "#xray-body", "Row 1")
        says(page, "#card-body", "Memory")
        page.locator("#field-dataset-config input").click()
        watch.look(
            page, account="#account", findings="#data-facts .notice", mapping="#data-facts .mapping",
            columns="#data-facts th", cells="#data-facts td", facts="#data-facts .facts", base="#base-facts",
            tokens="#xray-body .tokens",
            prompts="#xray-body .prompt", places="#xray-body small", card="#card-body",
            splits=_OPTIONS,
            reason="#data-facts .format-line", names="#runs .run-name",
        )  # fmt: skip
    shows(
        watch,
        "findings",
        "columns",
        "cells",
        "tokens",
        "prompts",
        "reason",
        "base",
        "places",
        "splits",
    )


def test_what_the_hub_finds_and_a_file_is_called(
    page: "Page", hostile: Hostile, watch: Watch
) -> None:
    page.goto(hostile.url)
    says(page, "#xray-body", "Row 1")
    for name in ("dataset", "base"):
        box = page.locator(f"#field-{name} input")
        _search(page, box)
        watch.look(page, **{name: _OPTIONS})
        box.press("Escape")
    for text in (TEXTS[1], "<img zq=1 src=\\\\evil.test\\zq1>", "\u202ezq1\u2066\x1b[31m"):
        name = text.replace("/", "\u2215")[:120]
        for suffix in (".jsonl", ".exe"):
            file = {"name": name + suffix, "mimeType": "text/plain", "buffer": b'{"text": "a"}\n'}
            page.locator("input[type=file]").first.set_input_files(file)  # type: ignore[arg-type]
            page.wait_for_timeout(700)
            watch.look(page, toasts=".toast-body", uploaded="#field-dataset")


def _search(page: "Page", box: "Locator") -> None:
    """Type until something is found: a plan that comes meanwhile closes the list."""
    from playwright.sync_api import TimeoutError as NotSeen

    found = page.locator(_OPTIONS).filter(has_text="zq").first
    for _ in range(4):
        box.fill("")
        box.press_sequentially("zq")
        try:
            found.wait_for(timeout=8_000)
            return
        except NotSeen:
            box.press("Escape")
    found.wait_for()


def test_a_run_its_comparison_and_its_publication(
    page: "Page", hostile: Hostile, watch: Watch
) -> None:
    for texts, run in zip((*VIEWS, TEXTS), hostile.runs, strict=True):
        hostile.actions.texts = texts
        page.goto(f"{hostile.url}?run={run.id}&view=run")
        says(page, "#log", "zq")
        says(page, "#samples", "zq")
        page.locator("#worker-log button").first.click()
        says(page, "#worker-log pre", "zq")
        page.locator("#others input").click()
        page.locator(_OPTIONS).first.click()
        says(page, "#overlay", "zq")
        watch.look(
            page, head="#run-head", outcome="#run-outcome", fork="#run-fork", log="#log", samples="#samples",
            worker_log="#worker-log", overlay="#overlay", names="#runs .run-name", charts="#charts-body",
        )  # fmt: skip
        if run.has_adapter:
            _compare_and_publish(page, watch)
    shows(watch, "log", "samples", "head", "prompt_chips", "answers", "tokens", "rows")


def _compare_and_publish(page: "Page", watch: Watch) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.locator("#chips button").nth(1).click()
    says(page, "#expected", "zq")
    page.locator("#run-both").click()
    says(page, "#compare-status", "Same base")
    watch.look(
        page, prompt_chips="#chips", answers="#panes", expected="#expected", title="#tabs h2"
    )
    for view, words in (("Differences", "Adapted"), ("Token probabilities", "changed its mind")):
        page.get_by_role("radio", name=view).click()
        says(page, "#panes", words)
        watch.look(page, differences="#panes", tokens=".pane-adapted .odds", past="#past")
    page.get_by_role("tab", name="Held-out").click()
    page.locator("#run-heldout").click()
    says(page, "#heldout-table", "zq")
    watch.look(page, rows="#heldout-table", past="#past", status="#heldout-status")
    page.get_by_role("tab", name="Blind votes").click()
    page.locator("#start-voting").click()
    says(page, "#vote-pair", "Left")
    watch.look(page, votes="#vote-pair")
    page.get_by_role("tab", name="Publish").click()
    says(page, "#published", "Published and verified")
    page.locator("#repo input, #repo textarea").fill("acme/tea")
    page.locator("#publish:enabled").click()
    says(page, "#published", "Error")
    watch.look(page, checklist="#checklist", refused="#published", title="#tabs h2")


def test_a_new_run_from_one(page: "Page", hostile: Hostile, watch: Watch) -> None:
    for texts, run in zip(VIEWS, hostile.runs, strict=False):
        hostile.actions.texts = texts
        page.goto(f"{hostile.url}?run={run.id}&view=run")
        page.locator("#rename").click()
        page.locator("#edit-name").get_by_role("button", name="Cancel").click()
        page.locator("#again").click()
        says(page, "#card-fork", "Made from")
        watch.look(page, fork="#card-fork", form="#form input, #form textarea", card="#card-body")


def test_a_run_that_is_shared_by_a_link(page: "Page", hostile: Hostile, watch: Watch) -> None:
    for texts, run in zip((*VIEWS, TEXTS), hostile.runs, strict=True):
        hostile.actions.texts = texts
        share(run)
        page.goto(f"{hostile.url}{shared_address(run)}")
        says(page, "#run-head", "zq")
        watch.look(page, shared_head="#run-head", shared_outcome="#run-outcome", shared="body")
        if page.locator("#samples-panel").count():
            says(page, "#samples", "zq")
            watch.look(page, shared_samples="#samples")
    shows(watch, "shared_head")


def test_the_plan_of_a_space_of_ones_own(page: "Page", hostile: Hostile, watch: Watch) -> None:
    page.goto(hostile.url)
    says(page, "#xray-body", "Row 1")
    page.locator("#own-space button").first.click()
    for hostile.actions.texts in VIEWS:
        page.locator("#own-space-name :is(input, textarea)").fill(
            f"tea {len(hostile.actions.texts[0])}"
        )
        page.locator("#own-space-plan").click()
        says(page, "#own-space-changes", "zq")
        watch.look(page, changes="#own-space-changes")
    shows(watch, "changes")


def test_an_address(page: "Page", hostile: Hostile, watch: Watch) -> None:
    """Of the page itself, of Gradio's own parameters, and of a run."""
    hostile.actions.texts = TEXTS[:1]
    run, several = hostile.runs[0].id, quote(" ".join(TEXTS)[:5000])
    for query in (
        f"run={several}&view={several}",
        f"{several}=1&__theme={several}&__lang={several}&deep_link={several}",
        f"run={run}&view={several}#{several}",
    ):
        page.goto(f"{hostile.url}?{query}")
        page.locator("#runs a").first.wait_for()
        page.wait_for_timeout(1000)
        watch.look(page, toasts=".toast-body")


def test_a_sentence_of_an_error(page: "Page", hostile: Hostile, watch: Watch) -> None:
    """As Gradio shows it: in a toast that takes HTML."""
    page.goto(f"{hostile.url}?run={hostile.runs[1].id}&view=compare")
    says(page, "#chips", "zq")
    for texts in VIEWS:
        _refuse_compare(hostile.actions, " ".join(texts))
        page.locator("#prompt textarea").fill("Hello")
        page.locator("#run-both").click()
        says(page, ".toast-body", "zq")
        watch.look(page, toasts=".toast-body")
        page.locator(".toast-close").first.click()
        page.locator(".toast-body").first.wait_for(state="detached")
    assert len(watch.seen["toasts"]) > 300


def _refuse_compare(actions: HostileActions, soup: str) -> None:
    def compare(*_: Any) -> Iterator[Reply]:
        raise HubError(soup, soup)
        yield

    actions.compare = compare  # type: ignore[method-assign]
