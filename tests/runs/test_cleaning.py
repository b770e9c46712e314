"""What leaves a Space, and what never does without a warning."""

import os
import time
from pathlib import Path

import pytest

from qlora_space.core.limits import Limits
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Home
from qlora_space.core.visitor import LOCAL
from qlora_space.runs import Publication, RunFolder, create_run
from qlora_space.runs.cleaning import clean
from tests.app.ui.fake import ScriptedBackend
from tests.train.conftest import demo_plan

DAY = 86400.0
PUBLICATION = Publication(repo="alice/a", url="u", commit="c", num_files=7, created=True, time=1.0)
LIMITS = Limits(keep_days=30, warning_days=7)


def run_of(home: Home, owner: str, ending: str = "finished", dataset: str = "demo") -> RunFolder:
    run = create_run(home.runs_folder, TrainingRequest(dataset=dataset), demo_plan(), owner=owner)
    ScriptedBackend(0.0, 4).work(run, ending)
    return run


def after(days: float) -> float:
    return time.time() + days * DAY


def test_an_unpublished_adapter_goes_only_days_after_its_owner_was_warned(tmp_path: Path) -> None:
    home = Home(tmp_path)
    run = run_of(home, "hub:alice")
    clean(home, LIMITS, after(29))
    assert run.delete_at() is None
    clean(home, LIMITS, after(31))
    assert run.path.exists()
    assert run.delete_at() == pytest.approx(after(38), abs=60)
    clean(home, LIMITS, after(37))
    assert run.path.exists()
    clean(home, LIMITS, after(39))
    assert not run.path.exists()


def test_what_was_published_or_has_no_adapter_goes_at_once_when_it_is_old(tmp_path: Path) -> None:
    home = Home(tmp_path)
    failed, published = run_of(home, "hub:alice", "failed"), run_of(home, "hub:alice")
    published.add_publication(PUBLICATION)
    clean(home, LIMITS, after(29))
    assert failed.path.exists()
    assert published.path.exists()
    clean(home, LIMITS, after(31))
    assert not failed.path.exists()
    assert not published.path.exists()


def test_publishing_ends_the_warning(tmp_path: Path) -> None:
    home = Home(tmp_path)
    run = run_of(home, "hub:alice")
    clean(home, LIMITS, after(31))
    run.add_publication(PUBLICATION)
    assert run.delete_at() is None


def test_this_machines_own_user_keeps_everything_and_a_run_that_trains_stays(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    mine = run_of(home, LOCAL)
    live = create_run(home.runs_folder, TrainingRequest(), demo_plan(), owner="hub:alice")
    clean(home, LIMITS, after(1000))
    assert mine.path.exists()
    assert live.path.exists()


def test_an_upload_goes_when_it_is_old_and_no_run_uses_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    uploads = home.uploads_folder("hub:alice")
    used, unused, fresh = (uploads / name for name in ("a" * 32, "b" * 32, "c" * 32))
    for folder in (used, unused, fresh):
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("{}\n")
    run_of(home, LOCAL, dataset=str(used / "rows.jsonl"))
    os.utime(fresh, (after(31), after(31)))
    clean(home, LIMITS, after(32))
    assert (used.exists(), unused.exists(), fresh.exists()) == (True, False, True)


def test_what_bases_answered_to_a_visitors_rows_goes_when_it_is_old(tmp_path: Path) -> None:
    home = Home(tmp_path)
    theirs, own = (home.base_results_folder(owner) / "b.json" for owner in ("hub:alice", LOCAL))
    for file in (theirs, own):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    clean(home, LIMITS, after(29))
    assert theirs.exists()
    clean(home, LIMITS, after(31))
    assert own.exists()
    assert not theirs.exists()
