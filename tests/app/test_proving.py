"""A publication is proved after the push, the proof is kept with the run, and a mismatch is an error."""

import time

import pytest

from qlora_space.app.actions import Actions
from qlora_space.app.cli.main import main
from qlora_space.app.proving import prove
from qlora_space.app.ui.proof_panel import proof_table
from qlora_space.app.ui.render.publish import proof as publications
from qlora_space.core.errors import RunError
from qlora_space.core.proof import Proof
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import LOCAL, Visitor
from qlora_space.hub.publish import publish_adapter
from qlora_space.hub.publish_run import kept_proof
from qlora_space.runs import Publication, RunFolder
from qlora_space.runs.proofs import proof_of, proofs
from tests.fake_hub import ALICE, FakeHub, StoredFile
from tests.train.small import go_on, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small_run(tmp_path_factory.mktemp("home"))
    assert go_on(run).kind == "finished"
    return run


def as_alice(run: RunFolder) -> Actions:
    return Actions(Settings(home=run.home.path)).for_visitor(Visitor(LOCAL, ALICE))


def publish(run: RunFolder, hub: FakeHub, *, is_damaged: bool = False) -> None:
    done = publish_adapter(run.adapter_folder, "# Card", "alice/proved", False, ALICE, run.id)
    commit = done.commit
    if is_damaged:
        repo = hub.repo("model", "alice/proved")
        template = StoredFile(b"{{ messages[0].content }}", False)
        commit = repo.commit({**repo.head.files, "chat_template.jinja": template}, "x").sha
    run.add_publication(
        Publication(
            repo=done.repo, url=done.url, commit=commit, num_files=1, created=True, time=time.time()
        )
    )


def test_a_proof_is_kept_with_the_run_and_shown(run: RunFolder, hub: FakeHub) -> None:
    with pytest.raises(RunError, match="was not published"):
        list(prove(as_alice(run), run))
    publish(run, hub)
    *_, proof = prove(as_alice(run), run)
    assert isinstance(proof, Proof)
    assert proof.is_proved, proof.problems
    assert proofs(run)[-1] == proof
    assert proof_of(run, proof.commit) == proof
    repo = hub.repo("model", "alice/proved")
    assert "## Proof\n\nDownloaded again and loaded" in repo.files["README.md"].decode()
    assert proof.commit == repo.head.sha == run.publications()[-1].commit
    first, second = (repo.commits[at].files["adapter_model.safetensors"] for at in (-2, -1))
    assert first.sha256 == second.sha256, "the card alone is new"
    assert "100 % of" in proof_table(proof)
    with pytest.raises(RunError, match="There is no run"):
        list(prove(as_alice(run).for_visitor(Visitor("hub:7", ALICE)), run))


def test_a_mismatch_is_red() -> None:
    proof = Proof(
        repo="a/b", commit="c", time=1.0, agreement=None, prompts=0, same_prompts=0, problems=("It is another.",)
    )  # fmt: skip
    assert "notice-error" in proof_table(proof)
    assert "It is another." in proof_table(proof)
    sent = Publication(repo="a/b", url="u", commit="c", num_files=1, created=True, time=1.0)
    shown = publications([sent], None, proof)
    assert "but it is not what was trained" in shown
    assert "Published and" not in shown


@pytest.mark.slow  # in the default suite: tests/model/test_proof.py
def test_the_command_fails_on_a_mismatch(
    run: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    publish(run, hub, is_damaged=True)
    monkeypatch.setenv("QLORA_SPACE_HOME", str(run.home.path))
    assert main(["prove", "--run", "latest", "--json"]) == 2
    out = capsys.readouterr()
    assert '"is_proved": false' in out.out
    assert "in another way than training" in out.err


def test_a_repository_that_was_deleted_meanwhile_is_not_made_anew(
    run: RunFolder, hub: FakeHub
) -> None:
    publish(run, hub)
    *_, proof = prove(as_alice(run), run)
    assert isinstance(proof, Proof)
    del hub.repos["model", "alice/proved"]
    assert kept_proof(run, proof, ALICE) == proof
    assert ("model", "alice/proved") not in hub.repos
    assert run.unsent_push() is None
