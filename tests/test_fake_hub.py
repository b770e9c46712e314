"""The fake Hub, asked by the real clients."""

import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.fake_hub import ALICE, BOB, CAROL, FakeHub

ALICES = HfApi(token=ALICE)
BOBS = HfApi(token=BOB)
NOBODYS = HfApi(token=False)
ROWS = b'{"text": "one"}\n{"text": "two"}\n'
WEIGHTS = bytes(range(256)) * 40


def put(api: HfApi, repo: str, **files: bytes) -> str:
    operations = [CommitOperationAdd(name.replace("_", "."), data) for name, data in files.items()]
    return api.create_commit(repo, operations, commit_message="put").oid


def test_the_clients_use_it_and_no_stored_token(hub: FakeHub) -> None:
    assert hub.url == huggingface_hub.constants.ENDPOINT
    assert huggingface_hub.get_token() is None


def test_a_token_tells_who_it_is(hub: FakeHub) -> None:
    assert ALICES.whoami()["name"] == "alice"
    assert BOBS.whoami()["auth"]["accessToken"]["role"] == "read"
    assert HfApi(token=CAROL).whoami()["auth"]["accessToken"]["role"] == "fineGrained"
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(token="hf_unknown").whoami()
    assert refused.value.response.status_code == 401


def test_a_repository_is_made_once_and_only_with_the_right(hub: FakeHub) -> None:
    url = ALICES.create_repo("alice/new", private=True)
    assert url == f"{hub.url}/alice/new"
    assert ALICES.create_repo("alice/new", exist_ok=True).repo_id == "alice/new"
    with pytest.raises(HfHubHTTPError) as conflict:
        ALICES.create_repo("alice/new")
    assert conflict.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError) as forbidden:
        BOBS.create_repo("bob/new")
    assert forbidden.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError):
        ALICES.create_repo("bob/new")
    assert hub.repo("model", "alice/new").private


def test_a_commit_carries_small_and_large_files_and_keeps_history(hub: FakeHub) -> None:
    ALICES.create_repo("alice/new")
    first = put(ALICES, "alice/new", a_txt=b"one", w_safetensors=WEIGHTS)
    second = put(ALICES, "alice/new", a_txt=b"two")
    path = ALICES.hf_hub_download("alice/new", "a.txt", revision=first)
    assert Path(path).read_bytes() == b"one"
    assert hub.repo("model", "alice/new").files["a.txt"] == b"two"
    assert Path(ALICES.hf_hub_download("alice/new", "w.safetensors")).read_bytes() == WEIGHTS
    commits = ALICES.list_repo_commits("alice/new")
    assert [c.commit_id for c in commits][:2] == [second, first]
    assert ALICES.model_info("alice/new", revision=first).sha == first
    ALICES.create_commit("alice/new", [CommitOperationDelete("a.txt")], commit_message="del")
    assert "a.txt" not in hub.repo("model", "alice/new").files


def test_a_commit_on_an_old_parent_is_refused_and_changes_nothing(hub: FakeHub) -> None:
    ALICES.create_repo("alice/new")
    old = ALICES.model_info("alice/new").sha
    put(ALICES, "alice/new", a_txt=b"one")
    with pytest.raises(HfHubHTTPError) as refused:
        ALICES.create_commit(
            "alice/new",
            [CommitOperationAdd("b.txt", b"two")],
            commit_message="late",
            parent_commit=old,
        )
    assert refused.value.response.status_code == 412
    assert "b.txt" not in hub.repo("model", "alice/new").files


def test_tree_and_paths_give_sizes_and_hashes(hub: FakeHub) -> None:
    repo = hub.add_model("alice/m", {"a.txt": "one", "sub/w.safetensors": WEIGHTS})
    names = [entry.path for entry in ALICES.list_repo_tree("alice/m", recursive=True)]
    assert names == ["sub", "a.txt", "sub/w.safetensors"]
    (found,) = ALICES.get_paths_info("alice/m", ["sub/w.safetensors", "none"])
    assert isinstance(found, huggingface_hub.hf_api.RepoFile)
    assert found.lfs is not None
    assert (found.size, found.lfs.sha256) == (
        len(WEIGHTS),
        repo.head.files["sub/w.safetensors"].sha256,
    )


def test_ranges_and_missing_files_are_answered_as_the_hub_does(hub: FakeHub) -> None:
    hub.add_model("alice/m", {"w.safetensors": WEIGHTS})
    url = f"{hub.url}/alice/m/resolve/main/w.safetensors"
    part = get_session().get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, WEIGHTS[10:20])
    assert get_session().get(url, headers={"Range": "bytes=99999-"}).status_code == 416
    with pytest.raises(EntryNotFoundError):
        ALICES.hf_hub_download("alice/m", "none.txt")
    with pytest.raises(RevisionNotFoundError):
        ALICES.model_info("alice/m", revision="none")
    with pytest.raises(RepositoryNotFoundError):
        NOBODYS.model_info("alice/none")


def test_private_is_hidden_and_gated_shows_only_its_description(hub: FakeHub) -> None:
    hub.add_model("alice/private", {"a.txt": "one"}, private=True)
    gated = hub.add_model("alice/gated", {"a.txt": "one"}, gated=True)
    for api in (BOBS, NOBODYS):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("alice/private")
        assert api.model_info("alice/gated").gated == "auto"
        with pytest.raises(GatedRepoError):
            api.hf_hub_download("alice/gated", "a.txt")
        with pytest.raises(GatedRepoError):
            api.auth_check("alice/gated")
    gated.accepted.add("bob")
    BOBS.auth_check("alice/gated")
    with pytest.raises(HfHubHTTPError):
        BOBS.auth_check("alice/gated", write=True)
    ALICES.auth_check("alice/private", write=True)


def test_search_lists_what_one_may_see_with_the_fields_asked_for(hub: FakeHub) -> None:
    hub.add_model("alice/llama", {"README.md": "---\nlicense: mit\n---\n"}).downloads = 3
    hub.add_model("alice/llama-2", {"a.txt": ""}).downloads = 9
    hub.add_model("alice/llama-3", {"a.txt": ""}, private=True)
    found = list(NOBODYS.list_models(search="llama", expand=["downloads", "tags"]))
    assert [(m.id, m.downloads) for m in found] == [("alice/llama-2", 9), ("alice/llama", 3)]
    assert found[1].tags == ["license:mit"]
    assert found[0].siblings is None
    assert len(list(NOBODYS.list_models(search="llama", limit=1))) == 1


def test_datasets_reads_configs_and_splits_of_a_card_and_of_file_names(hub: FakeHub) -> None:
    import datasets

    card = (
        "---\nconfigs:\n- config_name: a\n  data_files: one.jsonl\n"
        "- config_name: b\n  data_files:\n  - split: dev\n    path: two.jsonl\n---\n"
    )
    hub.add_dataset("alice/card", {"README.md": card, "one.jsonl": ROWS, "two.jsonl": ROWS})
    hub.add_dataset("alice/names", {"data/train.jsonl": ROWS, "data/test.jsonl": ROWS})
    assert datasets.get_dataset_config_names("alice/card", token=False) == ["a", "b"]
    assert datasets.get_dataset_split_names("alice/card", "b", token=False) == ["dev"]
    rows = datasets.load_dataset("alice/names", split="test", token=False)
    assert [row["text"] for row in rows] == ["one", "two"]
    streamed = datasets.load_dataset("alice/card", "a", split="train", streaming=True, token=False)
    assert next(iter(streamed)) == {"text": "one"}


def test_a_fault_takes_exactly_the_requests_asked_for(hub: FakeHub) -> None:
    hub.add_model("alice/m", {"a.txt": "one"})
    hub.fail(503, path="/api/models/", nth=2, times=2)
    statuses = [get_session().get(f"{hub.url}/api/models/alice/m").status_code for _ in range(4)]
    assert statuses == [200, 503, 503, 200]
    hub.fail(429, headers={"Retry-After": "7"})
    assert get_session().get(f"{hub.url}/api/models").headers["Retry-After"] == "7"


def test_a_dropped_request_does_nothing_and_a_lost_answer_did_it(hub: FakeHub) -> None:
    for kind, is_made in (("drop", False), ("lose", True)):
        hub.reset()
        hub.fail(kind, path="/repos/create")
        with pytest.raises(HfHubHTTPError.__bases__[0]):
            ALICES.create_repo("alice/new")
        assert (("model", "alice/new") in hub.repos) is is_made


def test_requests_say_who_asked_and_hold_no_token(hub: FakeHub) -> None:
    ALICES.whoami()
    get_session().get(f"{hub.url}/api/models?search=x", headers={"Authorization": "Bearer hf_x"})
    assert [(r.method, r.path, r.user) for r in hub.requests] == [
        ("GET", "/api/whoami-v2", "alice"),
        ("GET", "/api/models", "?"),
    ]
    assert ALICE not in repr(hub.requests)


def test_it_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    command = [sys.executable, "-m", "tests.fake_hub", "--model", f"alice/m={tmp_path}"]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert HfApi(endpoint=url, token=False).model_info("alice/m").id == "alice/m"
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_ten_clients_are_served_at_once(hub: FakeHub) -> None:
    from concurrent.futures import ThreadPoolExecutor

    hub.add_model("alice/m", {"w.safetensors": WEIGHTS})
    began = time.monotonic()
    url = f"{hub.url}/alice/m/resolve/main/w.safetensors"
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: get_session().get(url).content, range(100)))
    assert all(answer == WEIGHTS for answer in answers)
    assert time.monotonic() - began < 10
