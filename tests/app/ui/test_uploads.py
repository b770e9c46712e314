from pathlib import Path

import pytest

from qlora_space.app.ui.uploads import dataset_source, form_value, keep_upload, shown_name
from qlora_space.core.errors import DatasetError
from tests.app.ui.fake import FakeActions


def test_a_file_is_kept_under_our_name_and_shown_under_theirs(
    actions: FakeActions, tmp_path: Path
) -> None:
    theirs = tmp_path / "my rows (final).JSONL"
    theirs.write_text('{"text": "a"}\n')
    kept = keep_upload(actions, theirs)
    stored = Path(dataset_source(actions, kept))
    assert stored.read_text() == theirs.read_text()
    assert stored.parent.parent == actions.uploads_folder
    assert shown_name(kept) == shown_name(str(stored)) == "my-rows-final.jsonl"
    assert form_value(actions, str(stored)) == kept
    assert form_value(actions, "owner/name") == "owner/name"


@pytest.mark.parametrize("name", ["rows.exe", "rows", "rows.pkl", "rows.py"])
def test_other_kinds_of_files_are_refused_in_a_sentence(
    actions: FakeActions, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DatasetError, match="is not a kind of file"):
        keep_upload(actions, tmp_path / name)


@pytest.mark.parametrize(
    "value", ["upload:../../etc/passwd", "upload:" + "a" * 32 + "/../x", "upload:x/y.csv"]
)
def test_a_made_up_upload_names_no_file(actions: FakeActions, value: str) -> None:
    assert dataset_source(actions, value) == value
