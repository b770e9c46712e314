"""A Space is created or brought to what is asked; nothing is done twice, and nobody's app is overwritten."""

from pathlib import Path

import pytest

from qlora_space.core.errors import HubError, QloraSpaceError, RequestError
from qlora_space.hub.deploy import Deployment, SpaceSettings, deploy, plan_deployment
from qlora_space.hub.space_files import space_files
from tests.fake_hub import ALICE, BOB, FakeHub

NAME = "alice/app"
SECRET = "s3cret-value"
ALL = SpaceSettings(
    hardware="l4x1",
    private=False,
    sleep_seconds=3600,
    bucket="alice/runs",
    variables={"MOST_RUNS": "3"},
    secrets={"KEY": SECRET},
)


def deployed(settings: SpaceSettings = SpaceSettings()) -> Deployment:  # noqa: B008 - frozen
    return deploy(NAME, settings, ALICE)


def writes(hub: FakeHub) -> list[str]:
    return [f"{r.method} {r.path}" for r in hub.requests if r.method not in ("GET", "HEAD")]


def test_a_new_space_is_private_and_gets_the_files_in_one_commit(hub: FakeHub) -> None:
    heard: list[str] = []
    done = deploy(NAME, SpaceSettings(), ALICE, heard.append)
    repo = hub.repo("space", NAME)
    assert repo.private
    assert (repo.space.sdk, repo.space.hardware) == ("gradio", "cpu-basic")
    assert repo.files.items() >= {f.name: _data(f.source) for f in space_files()}.items()
    assert len(repo.commits) == 2  # the Hub's own, and ours
    assert tuple(heard) == done.changes
    assert done.commit == repo.head.sha
    assert done.url.endswith("/spaces/alice/app")


def _data(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def test_binary_files_go_the_way_of_large_files(hub: FakeHub) -> None:
    deployed()
    files = hub.repo("space", NAME).head.files
    assert {path for path, file in files.items() if file.is_lfs} == {
        "qlora_space/core/demo/base/model.safetensors"
    }


def test_the_creation_carries_every_setting(hub: FakeHub) -> None:
    deployed(ALL)
    repo = hub.repo("space", NAME)
    assert not repo.private
    assert repo.space.hardware == "l4x1"
    assert repo.space.sleep_seconds == 3600
    assert repo.space.variables == {"MOST_RUNS": "3", "QLORA_SPACE_HOME": "/data"}
    assert repo.space.secrets == {"KEY": SECRET}
    assert [(v["type"], v["source"], v["mountPath"]) for v in repo.space.volumes] == [
        ("bucket", "alice/runs", "/data")
    ]


def test_a_plan_writes_nothing_and_names_hardware_with_its_price(hub: FakeHub) -> None:
    planned = plan_deployment(NAME, ALL, ALICE)
    assert writes(hub) == []
    assert "on l4x1 (1x Nvidia L4, 0.80 USD an hour)" in planned.changes[0]
    assert planned.changes[0].startswith("Create the public Space alice/app")
    assert SECRET not in repr(planned) + repr(ALL)


@pytest.mark.parametrize("settings", [SpaceSettings(), ALL], ids=["none", "all"])
def test_the_second_time_there_is_nothing_to_do(hub: FakeHub, settings: SpaceSettings) -> None:
    deployed(settings)
    hub.requests.clear()
    again = deployed(settings)
    assert again.changes == ()
    assert again.commit == ""
    assert writes(hub) == []


def test_only_settings_that_differ_are_set(hub: FakeHub) -> None:
    deployed()
    hub.requests.clear()
    done = deployed(ALL)
    assert len(done.changes) == 7
    assert sorted(path.rsplit("/", 1)[1] for path in writes(hub)) == [
        "hardware",
        "secrets",
        "settings",
        "sleeptime",
        "variables",
        "variables",
        "volumes",
    ]
    assert deployed(ALL).changes == ()
    assert not hub.repo("space", NAME).private


def test_a_changed_file_and_one_of_an_older_version_are_one_commit_and_foreign_files_stay(
    hub: FakeHub,
) -> None:
    deployed()
    repo = hub.repo("space", NAME)
    files = dict(repo.head.files)
    other = files["LICENSE"]
    files |= {"app.py": other, "qlora_space/gone.py": other, "notes.md": other}
    repo.commit(files, "By hand")
    done = deployed()
    assert [c.split(" (")[0] for c in done.changes] == ["Upload 1 file"]
    assert "delete 1 file of another version" in done.changes[0]
    assert repo.files["app.py"] != repo.files["LICENSE"]
    assert "qlora_space/gone.py" not in repo.files
    assert "notes.md" in repo.files
    assert any("notes.md" in note for note in done.notes)
    assert repo.commits[-2].title == "By hand"


def test_a_secret_that_is_there_is_kept_and_said(hub: FakeHub) -> None:
    deployed(ALL)
    again = deployed(SpaceSettings(secrets={"KEY": "another"}))
    assert hub.repo("space", NAME).space.secrets == {"KEY": SECRET}
    assert any("cannot be read: KEY" in note for note in again.notes)


def test_another_app_is_never_overwritten(hub: FakeHub) -> None:
    hub.add_space(NAME, {"app.py": "print('precious')", "README.md": "---\nsdk: gradio\n---\n"})
    with pytest.raises(HubError, match=r"alice/app is a Space with another app \(app.py"):
        deployed()
    assert len(hub.repo("space", NAME).commits) == 1
    assert writes(hub) == []


def test_an_empty_space_that_was_made_on_the_hub_is_taken(hub: FakeHub) -> None:
    hub.add_space(NAME, {".gitattributes": "", "README.md": "---\nsdk: gradio\n---\n"})
    deployed()
    assert "app.py" in hub.repo("space", NAME).files


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        (None, NAME, "needs a Hub account"),
        ("hf_nobody", NAME, "does not know this token"),
        (BOB, "bob/app", "may only read"),
        (ALICE, "bob/app", "may not write to 'bob'"),
        (ALICE, "alice/a b", "cannot be the name"),
    ],
)
def test_who_may_not_write_is_told_before_anything_is_done(
    hub: FakeHub, token: str | None, name: str, words: str
) -> None:
    with pytest.raises(HubError, match=words):
        deploy(name, SpaceSettings(), token)
    assert writes(hub) == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/repos/create", 402, "wants a paid plan"),
        ("/repos/create", 403, "the Hub does not allow it"),
        ("/commit/", 412, "was changed by somebody else"),
        ("/commit/", 503, "failed: the Hub answered 503"),
        ("/_lfs/", 403, "the Hub does not allow it"),
    ],
)
def test_a_refusal_is_one_sentence_and_a_second_call_goes_on(
    hub: FakeHub, waits: list, path: str, status: int, words: str
) -> None:
    hub.fail(status, path=path, times=9)
    with pytest.raises(HubError, match=words) as caught:
        deployed(ALL)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    hub.faults.clear()
    deployed(ALL)
    assert deployed(ALL).changes == ()


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: FakeHub, waits: list) -> None:
    hub.fail("lose", path="/commit/", times=9)
    with pytest.raises(HubError):
        deployed()
    hub.faults.clear()
    assert deployed().changes == ()
    assert len(hub.repo("space", NAME).commits) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SpaceSettings(hardware="l4x9"), "does not offer. Choose one of: cpu-basic, l4x1"),
        (SpaceSettings(hardware="cpu-basic", sleep_seconds=900), "always sleeps after 48 hours"),
        (SpaceSettings(sleep_seconds=5), "less than building a Space takes"),
        (SpaceSettings(variables={"A B": "1"}), "cannot be the name of a variable"),
        (SpaceSettings(secrets={"": "1"}), "cannot be the name of a variable"),
        (SpaceSettings(variables={"T": "hf_abc"}), "holds a token"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    hub: FakeHub, settings: SpaceSettings, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        deployed(settings)
    assert writes(hub) == []


def test_zero_gpu_is_hardware_that_costs_its_visitors_quota(hub: FakeHub) -> None:
    done = deployed(SpaceSettings(hardware="zero-a10g"))
    assert hub.repo("space", NAME).space.hardware == "zero-a10g"
    assert any("zero-a10g (ZeroGPU: runs in slices" in change for change in done.changes)
    assert any(note.startswith("Nothing is billed") for note in done.notes)
    assert not any("billed until" in note for note in done.notes)


def test_files_that_did_not_arrive_are_not_called_deployed(hub: FakeHub) -> None:
    def lose_a_file(line: str) -> None:
        repo = hub.repo("space", NAME)
        repo.commit({p: f for p, f in repo.head.files.items() if p != "LICENSE"}, "Race")

    deployed()
    with pytest.raises(QloraSpaceError, match="does not hold the files"):
        deploy(NAME, SpaceSettings(variables={"A": "1"}), ALICE, lose_a_file)
