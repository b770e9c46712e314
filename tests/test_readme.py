"""The README is also the Space's configuration, and its option table is the request's."""

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
FRONT = yaml.safe_load(TEXT.split("---\n")[1])


def test_the_option_table_is_that_of_the_request() -> None:
    spec = importlib.util.spec_from_file_location(
        "write_options", ROOT / "docs" / "write_options.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.with_table(TEXT) == TEXT, "run python docs/write_options.py"


def test_the_front_matter_makes_a_gradio_space() -> None:
    assert FRONT["sdk"] == "gradio"
    assert (ROOT / FRONT["app_file"]).is_file()
    assert len(FRONT["short_description"]) <= 60  # the Hub rejects longer ones
    assert FRONT["hf_oauth"] is True
    assert "write-repos" not in FRONT["hf_oauth_scopes"]
    assert "manage-repos" not in FRONT["hf_oauth_scopes"]


def test_spaces_is_imported_before_anything_else() -> None:
    lines = (ROOT / "app.py").read_text().splitlines()
    assert next(line for line in lines if line.startswith(("import", "from"))).startswith(
        "import spaces"
    )


@pytest.mark.parametrize(
    "name",
    [
        "docs/images/new-run.png",
        "docs/images/run.png",
        "CONTRIBUTING.md",
        "docs/PERFORMANCE.md",
        "docs/LOG.md",
    ],
)
def test_what_the_readme_shows_is_there(name: str) -> None:
    assert name in TEXT
    assert (ROOT / name).is_file()
