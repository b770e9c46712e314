"""An export is made by a process of its own, kept with its run, and replaced as a whole."""

from pathlib import Path

import pytest
import torch

from qlora_space.app.actions import Actions
from qlora_space.app.cli.main import main
from qlora_space.app.exporting import export, exports
from qlora_space.app.ui.export_panel import made
from qlora_space.core.errors import RunError
from qlora_space.core.export import Exported, ExportOptions, ModelFormat
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import LOCAL, Visitor
from qlora_space.model import fresh_load
from qlora_space.runs import PushRequest, RunFolder
from tests.fake_hub import ALICE, FakeHub
from tests.model.test_merge import logits
from tests.train.small import go_on, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small_run(tmp_path_factory.mktemp("home"))
    assert go_on(run).kind == "finished"
    return run


def acting_on(run: RunFolder) -> Actions:
    return Actions(Settings(home=run.home.path))


def test_it_is_kept_with_the_run_and_shown_with_its_figures(run: RunFolder) -> None:
    acting = acting_on(run)
    assert made(run) == ""
    replies = list(export(acting, run, ExportOptions()))
    (kept,) = exports(run)
    assert replies[-1] == kept
    assert kept.agreement is not None
    shown = made(run)
    assert f"runs/{run.id}/exports/merged.zip" in shown
    assert "same next token at 100 % of" in shown
    stranger = acting.for_visitor(Visitor("hub:7", "hf_x"))
    with pytest.raises(RunError, match="There is no run"):
        list(export(stranger, run, ExportOptions()))


def test_the_command_writes_into_a_new_folder_only(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("QLORA_SPACE_HOME", str(run.home.path))
    (tmp_path / "mine").write_text("x")
    assert main(["export", "--run", "latest", "--to", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    asked = ["export", "--run", "latest", "--to", str(tmp_path / "new"), "--no-measure", "--json"]
    assert main(asked) == 0
    done = Exported.model_validate_json((tmp_path / "new" / "export.json").read_bytes())
    assert set(done.files) | {"export.json"} == {p.name for p in (tmp_path / "new").iterdir()}
    out = capsys.readouterr()
    assert '"folder"' in out.out
    assert "Not compared" in out.err


@pytest.mark.parametrize("kind", ["merged", "merged-nf4"])
def test_what_is_published_is_the_export_and_the_code_of_its_card_loads_it(
    run: RunFolder, hub: FakeHub, kind: ModelFormat
) -> None:
    acting = acting_on(run).for_visitor(Visitor(LOCAL, ALICE))
    list(export(acting, run, ExportOptions(format=kind, measure=False)))
    acting.publish(run, PushRequest(repo="alice/new", what=kind, private=False))
    card = hub.repo("model", "alice/new").files["README.md"].decode()
    code = card.split("```python\n")[1].split("\n```")[0]
    model, tokenizer = fresh_load.load(code)
    here, _ = fresh_load.load(code.replace("alice/new", str(run.exports_folder / kind)))
    torch.testing.assert_close(logits(model), logits(here), atol=0, rtol=0)
    assert tokenizer.chat_template
    assert run.all_publications()[-1].what == kind
    run.publications_file.unlink()
