"""A push ends with everything in place or nothing changed, whatever the Hub does meanwhile."""

import json
import shutil
from pathlib import Path

import pytest

from qlora_space.core.errors import Conflict, HubError
from qlora_space.hub import (
    Published,
    PushOptions,
    Target,
    fetch_adapter,
    publish_adapter,
    read_target,
)
from qlora_space.hub.publish import _Push
from tests.fake_hub import ALICE, BOB, FakeHub, Repo, StoredFile

CARD = "---\nlibrary_name: peft\n---\n# An adapter\n"
RUN, OTHER_RUN = "1" * 32, "2" * 32
NAMES = {
    "adapter_model.safetensors",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "qlora_space.json",
}


def push(folder: Path, repo: str = "alice/new", run: str = RUN, **changes: object) -> Published:
    values = {"private": False, "token": ALICE, "card": CARD, "record": '{"plan": {"r": 4}}'}
    values |= changes
    return publish_adapter(adapter_folder=folder, repo=repo, run_id=run, **values)  # type: ignore[arg-type]


def assert_whole(repo: Repo, folder: Path) -> None:
    """Everything there, byte for byte, in one commit, and no state in between."""
    assert set(repo.files) == {*NAMES, ".gitattributes"}
    for name in NAMES - {"README.md", "qlora_space.json"}:
        assert repo.files[name] == (folder / name).read_bytes()
    assert len(repo.commits) == 2
    assert_never_half(repo)


def assert_never_half(repo: Repo) -> None:
    for commit in repo.commits:
        has_config = "adapter_config.json" in commit.files
        assert has_config == ("adapter_model.safetensors" in commit.files)


def test_a_push_brings_everything_in_one_commit_and_proves_it(
    hub: FakeHub, adapter_folder: Path
) -> None:
    published = push(adapter_folder, private=True)
    repo = hub.repo("model", "alice/new")
    assert_whole(repo, adapter_folder)
    assert repo.private
    assert published.commit == repo.head.sha
    assert (published.repo, published.url) == ("alice/new", f"{hub.url}/alice/new")
    assert (published.num_files, published.created) == (len(NAMES), True)
    assert repo.files["README.md"] == CARD.encode()
    assert json.loads(repo.files["qlora_space.json"]) == {"plan": {"r": 4}, "run_id": RUN}


def test_what_comes_back_answers_as_what_was_trained(
    hub: FakeHub, adapter_folder: Path, tiny_base: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    push(adapter_folder)
    ids = torch.arange(20)[None]
    logits = []
    for source in (str(adapter_folder), "alice/new", str(fetch_adapter("alice/new", None))):
        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        model = PeftModel.from_pretrained(base, source)
        with torch.no_grad():
            logits.append(model(ids).logits)
            with model.disable_adapter():
                plain = model(ids).logits
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], plain)


def test_the_hubs_own_waiting_time_is_obeyed_and_a_long_one_is_told(
    hub: FakeHub, adapter_folder: Path, waits: list[float]
) -> None:
    limit = {"ratelimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
    hub.fail(429, path="/commit/", headers=limit)
    push(adapter_folder)
    assert waits == [55.0]
    hub.fail(429, path="/commit/", times=9, headers={"Retry-After": "3000"})
    with pytest.raises(HubError, match="Try again in 3000 seconds") as refused:
        push(adapter_folder, card=CARD + "more")
    assert "safe on this machine" in refused.value.hint
    assert waits == [55.0]


def test_a_commit_whose_answer_was_lost_is_not_sent_again(
    hub: FakeHub, adapter_folder: Path, waits: list[float]
) -> None:
    hub.fail("lose", path="/commit/main")
    published = push(adapter_folder)
    assert sum("/commit/" in r.path for r in hub.requests) == 1
    assert published.commit == hub.repo("model", "alice/new").head.sha
    assert published.created


def edit(repo: Repo, name: str, data: bytes) -> None:
    """As somebody does on the repository's page."""
    repo.commit({**repo.head.files, name: StoredFile(data, False)}, f"Update {name}")


def test_somebody_elses_commit_on_top_of_a_lost_answer_stays(
    hub: FakeHub, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit_meanwhile(_: float) -> None:
        edit(hub.repo("model", "alice/new"), "README.md", b"edited by hand")

    hub.fail("lose", path="/commit/main")
    monkeypatch.setattr("qlora_space.hub.publish.time.sleep", edit_meanwhile)
    published = push(adapter_folder)
    repo = hub.repo("model", "alice/new")
    assert repo.files["README.md"] == b"edited by hand"
    assert published.commit == repo.commits[1].sha


def test_what_somebody_changed_on_the_hub_is_replaced_only_if_asked_for(
    hub: FakeHub, adapter_folder: Path
) -> None:
    push(adapter_folder)
    repo = hub.repo("model", "alice/new")
    edit(repo, "README.md", b"edited by hand")
    del repo.head.files["tokenizer.json"]  # type: ignore[attr-defined]
    assert read_target("alice/new", RUN, ALICE).changed == ("README.md",)
    with pytest.raises(Conflict, match=r"README\.md, tokenizer\.json in alice/new were changed"):
        push(adapter_folder, card=CARD + "More.\n")
    assert repo.files["README.md"] == b"edited by hand"
    push(adapter_folder, card=CARD + "More.\n", options=PushOptions(replace=True))
    assert repo.files["README.md"] == (CARD + "More.\n").encode()
    assert "tokenizer.json" in repo.files
    assert len(repo.commits) == 4


def test_a_commit_that_comes_between_is_a_conflict_which_asks(
    hub: FakeHub, adapter_folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    push(adapter_folder)
    repo = hub.repo("model", "alice/new")
    send = _Push._send

    def late(self: _Push, parent: str) -> str:
        edit(repo, "README.md", b"edited by hand")
        return send(self, parent)

    monkeypatch.setattr(_Push, "_send", late)
    with pytest.raises(Conflict, match="README"):
        push(adapter_folder, card=CARD + "More.\n")
    assert repo.files["README.md"] == b"edited by hand"


def test_files_beside_ours_that_were_changed_are_no_conflict(
    hub: FakeHub, adapter_folder: Path
) -> None:
    push(adapter_folder)
    repo = hub.repo("model", "alice/new")
    edit(repo, "notes.txt", b"mine")
    push(adapter_folder, card=CARD + "More.\n")
    edit(repo, "notes.txt", b"mine, too")
    assert push(adapter_folder, card=CARD + "Even more.\n").commit == repo.head.sha
    assert repo.files["notes.txt"] == b"mine, too"


def test_a_repository_that_may_not_be_shown_to_all_is_complete_and_says_so(
    hub: FakeHub, adapter_folder: Path
) -> None:
    hub.fail(403, path="/settings")
    published = push(adapter_folder)
    assert published.stayed_private
    assert published.private
    assert_whole(hub.repo("model", "alice/new"), adapter_folder)
    assert not push(adapter_folder, options=PushOptions(was_created=True)).stayed_private
    assert not hub.repo("model", "alice/new").private


def test_the_same_run_again_is_a_commit_on_top_only_if_something_changed(
    hub: FakeHub, adapter_folder: Path
) -> None:
    first = push(adapter_folder)
    assert push(adapter_folder).commit == first.commit
    again = push(adapter_folder, card=CARD + "More.\n")
    repo = hub.repo("model", "alice/new")
    assert [c.sha for c in repo.commits][1:] == [first.commit, again.commit]
    assert not again.created


def test_files_of_others_are_never_touched(hub: FakeHub, adapter_folder: Path) -> None:
    push(adapter_folder, repo="alice/other-run", run=OTHER_RUN)
    hub.add_model("alice/readme", {"README.md": "mine"})
    hub.add_model("alice/weights", {"model.safetensors": b"mine"})
    hub.add_model("alice/false-record", {"qlora_space.json": "[1]", "a.txt": "mine"})
    for repo_id in ("alice/other-run", "alice/readme", "alice/weights", "alice/false-record"):
        repo = hub.repo("model", repo_id)
        before, commits = repo.files, len(repo.commits)
        with pytest.raises(HubError, match="not from this run") as refused:
            push(adapter_folder, repo=repo_id)
        assert "Choose another name" in refused.value.hint
        assert (repo.files, len(repo.commits)) == (before, commits)


def test_two_runs_that_race_for_one_name_do_not_mix(
    hub: FakeHub, adapter_folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    send = _Push._send

    def late(self: _Push, parent: str) -> str:
        if self.run_id == RUN and not hub.repo("model", "alice/new").commits[1:]:
            push(adapter_folder, run=OTHER_RUN)
        return send(self, parent)

    monkeypatch.setattr(_Push, "_send", late)
    with pytest.raises(HubError, match="not from this run"):
        push(adapter_folder)
    repo = hub.repo("model", "alice/new")
    assert json.loads(repo.files["qlora_space.json"])["run_id"] == OTHER_RUN
    assert len(repo.commits) == 2


def test_what_is_to_be_private_never_goes_where_all_can_read(
    hub: FakeHub, adapter_folder: Path
) -> None:
    hub.add_model("alice/public", {})
    with pytest.raises(HubError, match="everyone can read it"):
        push(adapter_folder, repo="alice/public", private=True)
    assert hub.repo("model", "alice/public").files == {}


def test_a_name_without_an_owner_is_ones_own_and_an_orgs_name_works(
    hub: FakeHub, adapter_folder: Path
) -> None:
    assert push(adapter_folder, repo="short").repo == "alice/short"
    assert push(adapter_folder, repo="wonderland/team").repo == "wonderland/team"


@pytest.mark.parametrize("token", [None, BOB, "hf_unknown"])
def test_without_the_right_nothing_is_tried(
    hub: FakeHub, adapter_folder: Path, token: str | None
) -> None:
    with pytest.raises(HubError):
        push(adapter_folder, token=token)
    assert {r.method for r in hub.requests} <= {"GET"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_adapter_that_is_not_finite_is_never_sent(
    hub: FakeHub, adapter_folder: Path, tmp_path: Path, dtype: str, value: float
) -> None:
    import torch
    from safetensors.torch import save_file

    shutil.copytree(adapter_folder, tmp_path, dirs_exist_ok=True)
    weights = {"a": torch.full((3, 4), 3e4 if dtype == "float16" else 1e38), "b": torch.ones(5)}
    weights["a"][1, 2] = value
    typed = {name: w.to(getattr(torch, dtype)) for name, w in weights.items()}
    save_file(typed, tmp_path / "adapter_model.safetensors")
    with pytest.raises(HubError, match="1 of 12 values of a are not finite"):
        push(tmp_path)
    assert hub.requests == []
    typed["a"][1, 2] = 0
    save_file(typed, tmp_path / "adapter_model.safetensors")
    push(tmp_path)


def test_the_tensor_with_the_bad_value_is_named_whatever_the_order_of_names_and_bytes(
    hub: FakeHub, adapter_folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    shutil.copytree(adapter_folder, tmp_path, dirs_exist_ok=True)
    weights = {"a": torch.ones(3).half(), "b": torch.ones(7), "c": torch.ones(5).bfloat16()}
    for name, weight in weights.items():
        broken = weight.clone()
        broken[-1] = float("nan")
        save_file(weights | {name: broken}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(HubError, match=f"1 of {len(weight)} values of {name} are not finite"):
            push(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\x02" + b"\0" * 7 + b"{}"])
def test_a_damaged_adapter_is_not_published(
    hub: FakeHub, adapter_folder: Path, tmp_path: Path, content: bytes
) -> None:
    shutil.copytree(adapter_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(HubError):
        push(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(HubError, match=r"no adapter_model\.safetensors"):
        push(tmp_path)
    assert hub.requests == []


def test_a_cut_adapter_is_not_published(hub: FakeHub, adapter_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(HubError, match="is damaged"):
        push(tmp_path)


def test_a_file_that_differs_on_the_hub_is_detected(
    hub: FakeHub, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.fake_hub as fake

    entry = fake._entry

    def lie(path: str, file: fake.StoredFile) -> dict[str, object]:
        altered = bytes([file.data[0] ^ 1]) + file.data[1:]
        return entry(path, fake.StoredFile(altered, file.is_lfs) if path == lied else file)

    monkeypatch.setattr(fake, "_entry", lie)
    for lied in ("adapter_model.safetensors", "adapter_config.json"):
        hub.reset()
        with pytest.raises(HubError, match=f"{lied} .* is not the file that was sent"):
            push(adapter_folder)


def test_the_token_is_nowhere(
    hub: FakeHub,
    adapter_folder: Path,
    waits: list[float],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")  # below it the transport prints what our fault echoes
    published = push(adapter_folder)
    seen = [repr(published)]
    of_a_sign_in = "hf_oauth_eyJhbGci.eyJzdWI-x_y.ForTests-only"
    for kind in (401, 403, 404, 413, 500, "drop"):
        hub.reset()
        echo = f"bad token {ALICE}, {of_a_sign_in}"
        hub.fail(kind, times=999, headers={"X-Error-Message": echo})
        with pytest.raises(HubError) as refused:
            push(adapter_folder)
        error = refused.value
        seen += [repr(error), str(error), repr(error.__cause__)]
    output = capfd.readouterr()
    repo_bytes = b"".join(hub.uploads.values())
    everything = "".join(seen) + output.out + output.err + caplog.text
    assert ALICE not in everything
    assert of_a_sign_in[8:] not in everything
    assert ALICE.encode() not in repo_bytes


def test_what_a_push_would_meet_is_known_before_it(hub: FakeHub, adapter_folder: Path) -> None:
    assert read_target("alice/new", RUN, ALICE).state == "free"
    push(adapter_folder, private=True)
    assert read_target("alice/new", RUN, ALICE) == Target("ours", is_private=True)
    assert read_target("alice/new", OTHER_RUN, ALICE).state == "foreign"
    hub.add_model("carol/open", {"README.md": "hers"})
    assert read_target("carol/open", RUN, ALICE).state == "not writable"
    hub.fail(500, path="/api/models/", times=9)
    with pytest.raises(HubError, match="alice/new could not be checked"):
        read_target("alice/new", RUN, ALICE)
