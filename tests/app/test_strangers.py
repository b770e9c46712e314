"""What is not yours does not exist: every event handler, endpoint and route of a running Space, tried by everybody.

The rows are made from the app's own configuration, so that a new handler is tried too; a new endpoint or route fails
until it stands in a table here.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlora_space.core.comparison import ComparedRow, CompareOptions, Done, PaneAnswer
from qlora_space.core.export import EXPORT_FILE, Exported, ExportOptions
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.runs import RunFolder, create_run
from qlora_space.runs.comparisons import keep_comparison
from qlora_space.runs.sharing import share, shared_address, stop_sharing
from qlora_space.runs.votes import Vote, add_vote
from tests.app.ui.fake import ScriptedBackend
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.space import SpaceVisitor, running_space
from tests.train.conftest import demo_plan

pytestmark = pytest.mark.timeout(900)
CANARY = "kestrel-of-alice"  # in everything that is hers
COMPARISON = "5" * 16
ROOT = Path(__file__).parents[2]
ACTORS = ("other", "anonymous", "expired", "forged")
MANY = {
    f"QLORA_SPACE_{name}": "1000000"
    for name in ("CALLS_PER_MINUTE", "CALLS_PER_MINUTE_OF_ADDRESS", "PENDING_CALLS")
}
NO_STARTS = {
    "QLORA_SPACE_MIN_FREE_GIB": "1000000"
}  # Bob may start runs, and none of them is wanted


@dataclass(frozen=True)
class Place:
    url: str
    run: RunFolder
    actors: dict[str, SpaceVisitor]

    @property
    def config(self) -> dict[str, Any]:
        return self.actors["anonymous"].request("GET", "/config").json()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("space")
    settings = Settings(home=home / "qlora")
    run = _run_of("hub:alice", settings)
    with (
        FakeHub() as hub,
        running_space(hub, sys.executable, ROOT, home, **MANY, **NO_STARTS) as url,
    ):
        actors = {name: SpaceVisitor(url) for name in ("owner", *ACTORS)}
        hub.signs_in_as = ALICE
        actors["owner"].sign_in()
        hub.signs_in_as = BOB
        actors["other"].sign_in()
        hub.signs_in_as, hub.sign_in_seconds = ALICE, -10
        actors["expired"].sign_in()
        actors["forged"].cookie = _forged(actors["owner"].cookie)
        yield Place(url, run, actors)


def _run_of(owner: str, settings: Settings) -> RunFolder:
    plan = demo_plan().model_copy(update={"name": CANARY})
    request = TrainingRequest(name=CANARY)
    run = create_run(settings.runs_folder, request, plan, owner=owner)
    ScriptedBackend(0.0, 20).work(run, "finished")
    run.log_file.write_text(f"{CANARY} in the log\n")
    run.data_folder.mkdir()
    row = {"messages": [{"role": "user", "content": CANARY}], "expected": CANARY}
    (run.data_folder / "eval_examples.jsonl").write_text(json.dumps(row) + "\n")
    answers = (PaneAnswer(text="no"), PaneAnswer(text=CANARY))
    compared = ComparedRow(prompt=CANARY, answers=answers)
    done = Done(
        rows=(compared,), base_fingerprint="f", same_base=True, prompt_tokens=1, tokens_per_second=1, seconds=1
    )  # fmt: skip
    exported = Exported(options=ExportOptions(), dtype="bfloat16", num_bytes=1, files=("a.txt",))
    merged = run.exports_folder / "merged"
    merged.mkdir(parents=True)
    (merged / "a.txt").write_text(CANARY)
    (merged / EXPORT_FILE).write_text(exported.model_dump_json())
    kept = keep_comparison(run, ("Base", "Adapted"), CompareOptions(), done)
    (run.comparisons_folder / f"{kept}.json").rename(run.comparisons_folder / f"{COMPARISON}.json")
    vote = {"comparison": COMPARISON, "number": 0, "label": "Adapted", "choice": "adapted"}
    add_vote(run, Vote(time=1.0, row=compared, **vote))
    return run


def _forged(cookie: str) -> str:
    """Signed with the key that Gradio takes where there is no secret, which is public."""
    import itsdangerous

    key = hashlib.sha256(b"-v4").hexdigest()
    value = cookie.removeprefix("session=").split(".")[0].encode()
    return f"session={itsdangerous.TimestampSigner(key).sign(value).decode()}"


def _state_of(run: RunFolder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file()}


def _inputs(config: dict[str, Any], dependency: dict[str, Any], run_id: str) -> list[Any]:
    """What a stranger would send: the run's address and id wherever text or a choice is taken."""
    props = {c["id"]: c for c in config["components"]}
    values: list[Any] = []
    for number in dependency["inputs"]:
        component = props[number]
        kind, default = component["type"], component["props"].get("value")
        if kind == "textbox" and not component["props"].get("elem_id"):
            values.append(f"run={run_id}&view=run")
        elif component["props"].get("elem_id") in ("others", "runs-picked", "compare-others"):
            values.append([run_id])
        else:
            values.append(None if kind == "state" else default)
    return values


def test_no_event_handler_shows_or_changes_what_is_anothers(place: Place) -> None:
    config, before = place.config, _state_of(place.run)
    handlers = [d for d in config["dependencies"] if d["backend_fn"]]
    event = {"pick": place.run.id, "set": "r", "to": "8", "input_value": CANARY[:4]}
    tried = 0
    for name in ACTORS:
        actor = place.actors[name]
        for dependency in handlers:
            data = _inputs(config, dependency, place.run.id)
            shown = actor.handle(dependency["id"], data, event)
            assert CANARY not in shown.replace(CANARY[:4] + '"', ""), (name, dependency["api_name"])
            tried += 1
    assert _state_of(place.run) == before
    assert tried == len(ACTORS) * len(handlers) > 200
    sys.stdout.write(f"{tried} calls of {len(handlers)} handlers by strangers: all deny\n")


def test_the_same_handlers_show_it_to_its_owner(place: Place) -> None:
    """Else the matrix would prove nothing."""
    config = place.config
    names = ("prepare", "prepare_1")
    found = {}
    for dependency in config["dependencies"]:
        if dependency["api_name"] in names:
            data = _inputs(config, dependency, place.run.id)
            found[dependency["api_name"]] = CANARY in place.actors["owner"].handle(
                dependency["id"], data
            )
    assert found == dict.fromkeys(names, True)


@pytest.mark.parametrize("name", ["owner", *ACTORS])
def test_a_runs_stream_is_its_owners(place: Place, name: str) -> None:
    actor, is_owner = place.actors[name], name == "owner"
    for path in ("stream", "now.json", "votes.jsonl", f"comparisons/{COMPARISON}.json"):
        answers = {
            run_id: _first(actor, f"/runs/{run_id}/{path}") for run_id in (place.run.id, "0" * 32)
        }
        mine, unknown = (text.replace(run_id, "ID") for run_id, (_, text) in answers.items())
        assert (CANARY in mine) is is_owner, path
        assert is_owner or (answers[place.run.id][0] == 404 and mine == unknown), path
    for file in ("adapter.zip", "metrics.csv", "events.jsonl", "exports/merged.zip"):
        answer = actor.request("GET", f"/runs/{place.run.id}/{file}")
        assert (answer.status_code == 200) is is_owner, file
        assert is_owner or CANARY not in answer.text
    listed = actor.request("GET", "/runs/list.json").text
    assert (CANARY in listed) is is_owner


def test_a_link_shows_a_run_to_whoever_has_it_and_gives_no_right(place: Place) -> None:
    share(place.run)
    try:
        link = f"/{shared_address(place.run)}"
        for name in ACTORS:
            actor = place.actors[name]
            assert CANARY in actor.request("GET", f"{link}/now.json").json()["pieces"]["run-head"]
            assert actor.request("GET", link).status_code == 200
            for path in (link, f"{link}/stop", f"{link}/now.json"):
                assert actor.request("POST", path).status_code == 404
            assert actor.request("GET", f"/runs/{place.run.id}/now.json").status_code == 404
            assert CANARY not in actor.request("GET", "/runs/list.json").text
        stop_sharing(place.run)
        assert {place.actors[n].request("GET", link).status_code for n in ACTORS} == {404}
    finally:
        stop_sharing(place.run)


def _first(actor: SpaceVisitor, path: str) -> tuple[int, str]:
    """Status and first piece of an answer that may never end."""
    import httpx

    with httpx.stream("GET", f"{actor.url}{path}", headers=actor.headers, timeout=30) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if len(text) > 200:
                break
        return answer.status_code, text


ENDPOINTS: dict[str, tuple[Any, ...]] = {
    # those that take a run, with what is sent after its id
    "events": (0,),
    "stop": (False,),
    "resume": (),
    "compare": ("Hello", "", None, None),
    "compare_many": (None, None, None),
    "publish": ("bob/stolen", False, None),
}
WITHOUT_A_RUN = {"inspect", "plan", "start", "_check_login_status"}  # the last is Gradio's


def test_no_endpoint_of_the_api_finds_anothers_run(place: Place) -> None:
    named = place.actors["anonymous"].request("GET", "/gradio_api/info").json()["named_endpoints"]
    assert {name.strip("/") for name in named} == set(ENDPOINTS) | WITHOUT_A_RUN, "a new endpoint"
    before, unknown = _state_of(place.run), "0" * 32
    for name in ACTORS:
        for endpoint, rest in ENDPOINTS.items():
            answers = []
            for run_id in (place.run.id, unknown):
                with pytest.raises(RuntimeError) as refused:
                    place.actors[name].call(endpoint, run_id, *rest)
                answers.append(str(refused.value).replace(run_id, "ID"))
            assert answers[0] == answers[1], "the same words as for one that nobody has"
            assert "There is no run" in answers[0]
    assert _state_of(place.run) == before
    assert place.actors["owner"].call("events", place.run.id, 0)


@pytest.mark.parametrize("name", ACTORS)
def test_a_sessions_hash_and_an_events_id_are_no_right(place: Place, name: str) -> None:
    owner, actor = place.actors["owner"], place.actors[name]
    owner.handle(_handler(place, "open_page"), [f"run={place.run.id}&view=run", []])
    stolen = SpaceVisitor(place.url, actor.cookie, owner.session_hash)
    for method, path in (
        ("GET", f"/gradio_api/queue/data?session_hash={owner.session_hash}"),
        ("GET", f"/gradio_api/heartbeat/{owner.session_hash}"),
    ):
        answer = stolen.request(method, path)
        assert answer.status_code == 404, path
    for path in ("queue/join", "cancel", "reset", "run/predict", "call/events"):
        body = {"session_hash": owner.session_hash, "fn_index": 0, "data": [], "event_id": "x"}
        assert stolen.request("POST", f"/gradio_api/{path}", json=body).status_code == 404, path
    event = owner.request("POST", "/gradio_api/call/events", json={"data": [place.run.id, 0]})
    path = f"/gradio_api/call/events/{event.json()['event_id']}"
    assert actor.request("GET", path).status_code == 404
    assert "started" in owner.request("GET", path).text


def _handler(place: Place, name: str) -> int:
    found = [d["id"] for d in place.config["dependencies"] if d["api_name"] == name]
    return int(found[0])


# Paths of Gradio that the page uses and that hold nothing of anybody.
OPEN_ROUTES = re.compile(
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon.*|svelte/.*|static/.*|assets/.*|logout"
    r"|login/(huggingface|callback)|gradio_api/(info|app_id|startup-events|theme\.css|upload_progress))?/?"
)
# Those that name a session, an event or a run: the tests above.
OWNED_ROUTES = re.compile(
    r"/gradio_api/(queue/(join|data)|heartbeat/.*|call/.*|run/.*|api/.*|cancel|reset|upload)/?"
)


def test_every_route_is_open_owned_or_closed(place: Place) -> None:
    """Routes of Gradio's server that stand in neither table answer 404, whoever asks."""
    import gradio.routes

    source = Path(gradio.routes.__file__).read_text()
    declared = re.findall(r"@(router|app)\.(get|post|head)\(\s*f?\"([^\"]+)\"", source)
    closed = 0
    for kind, method, path in declared:
        full = ("/gradio_api" if kind == "router" else "") + path
        filled = re.sub(r"\{[^}]+\}", "x", full)
        if OPEN_ROUTES.fullmatch(filled) or OWNED_ROUTES.fullmatch(filled):
            continue
        for actor in place.actors.values():
            answer = actor.request(
                method.upper(), filled, **({"json": {}} if method == "post" else {})
            )
            assert answer.status_code == 404, (method, filled, answer.status_code)
        closed += 1
    assert closed > 25
    sys.stdout.write(f"{len(declared)} routes declared, {closed} closed to all\n")


@pytest.mark.parametrize("name", ACTORS)
def test_files_of_a_run_are_not_served(place: Place, name: str) -> None:
    for file in place.run.path.rglob("*.json*"):
        for path in (f"/gradio_api/file={file}", f"/file={file}", f"/gradio_api/file/{file}"):
            answer = place.actors[name].request("GET", path)
            assert answer.status_code == 404
            assert CANARY not in answer.text


@pytest.mark.parametrize("name", ACTORS)
def test_a_run_is_not_stopped_or_seen_by_its_address(place: Place, name: str) -> None:
    actor = place.actors[name]
    answers = {
        run_id: actor.request("POST", f"/runs/{run_id}/stop?keep=false")
        for run_id in (place.run.id, "0" * 32)
    }
    assert {a.status_code for a in answers.values()} == {404}
    first, second = (a.text.replace(run_id, "ID") for run_id, a in answers.items())
    assert first == second
    assert not place.run.discard_file.exists()


def test_another_sites_page_may_do_nothing(place: Place) -> None:
    owner = place.actors["owner"]
    body = {"data": [place.run.id, False]}
    for origin in ("https://evil.example", "null", f"{place.url}.evil.example"):
        for path in ("call/stop", "queue/join", "upload"):
            sent = httpx_headers(owner, Origin=origin)
            answer = owner_request(place, path, body, sent)
            assert answer.status_code == 403, (origin, path)
    sent = httpx_headers(owner, **{"Sec-Fetch-Site": "cross-site"})
    assert owner_request(place, "call/stop", body, sent).status_code == 403
    assert not place.run.stop_file.exists()


def httpx_headers(actor: SpaceVisitor, **more: str) -> dict[str, str]:
    return actor.headers | more


def owner_request(place: Place, path: str, body: Any, headers: dict[str, str]) -> Any:
    import httpx

    return httpx.post(f"{place.url}/gradio_api/{path}", json=body, headers=headers)


def test_answers_say_who_may_embed_them_and_only_known_hosts_are_answered(place: Place) -> None:
    import httpx

    headers = httpx.get(place.url).headers
    assert "https://huggingface.co" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    for host, status in (("evil.example", 400), ("127.0.0.1", 200), ("10.1.2.3:7860", 200)):
        assert httpx.get(place.url, headers={"Host": host}).status_code == status
    assert httpx.get(f"{place.url}/health").text == "ok"


def test_only_one_port_listens(place: Place) -> None:
    """Others of Gradio's and of spaces' stay closed, such as the one that reloads code."""
    import psutil

    port = int(place.url.rsplit(":", 1)[1])
    servers = [
        c.pid
        for c in psutil.net_connections("tcp")
        if c.laddr and c.laddr[1] == port and c.status == "LISTEN"
    ]
    tree = {servers[0], *(p.pid for p in psutil.Process(servers[0]).children(recursive=True))}
    listening = {
        c.laddr[1] for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in tree
    }
    assert listening == {port}
