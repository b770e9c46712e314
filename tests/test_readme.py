"""The README is also the Space's configuration, and its tables are those of the request and of the limits."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, SpaceHardware

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
FRONT = yaml.safe_load(TEXT.split("---\n")[1])

MOST_EXPIRATION_MINUTES = 43_200
# The scopes that a call needs; contribute-repos is for repositories that this app created.
CALLS = {
    # The quota is read where a Space's owner asks for read-billing, and is unknown elsewhere.
    (): {"whoami", "list_spaces_hardware", "list_jobs_hardware", "get_zero_gpu_quota"},
    ("jobs",): {
        "cancel_job",
        "fetch_job_logs",
        "inspect_job",
        "list_jobs",
        "run_job",
        "update_job_labels",
    },
    ("read-repos", "gated-repos"): {
        "auth_check",
        "dataset_info",
        "file_exists",
        "get_paths_info",
        "hf_hub_download",
        "list_models",
        "list_repo_commits",
        "list_repo_tree",
        "model_info",
        "snapshot_download",
        "space_info",
    },
    ("contribute-repos",): {
        "add_space_secret",
        "add_space_variable",
        "create_commit",
        "create_repo",
        "get_space_runtime",
        "get_space_secrets",
        "get_space_variables",
        "request_space_hardware",
        "set_space_sleep_time",
        "set_space_volumes",
        "update_repo_settings",
    },
}


def test_the_tables_are_those_of_the_request_and_of_the_limits() -> None:
    spec = importlib.util.spec_from_file_location(
        "write_options", ROOT / "docs" / "write_options.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.with_tables(TEXT) == TEXT, "run python docs/write_options.py"


def test_the_front_matter_makes_a_gradio_space() -> None:
    assert FRONT["sdk"] == "gradio"
    assert (ROOT / FRONT["app_file"]).is_file()
    assert len(FRONT["short_description"]) <= 60  # the Hub rejects longer ones
    assert re.fullmatch(r"\d+[mh]", FRONT["startup_duration_timeout"])
    hardware = SpaceHardware(FRONT["suggested_hardware"]).value
    assert not hardware.startswith(("cpu-", "zero-"))  # on neither of them this app trains a base


def test_a_sign_in_lasts_a_day_and_the_hub_allows_that() -> None:
    assert FRONT["hf_oauth"] is True
    assert FRONT["hf_oauth_expiration_minutes"] == 24 * 60 <= MOST_EXPIRATION_MINUTES


def hub_calls() -> set[str]:
    """Methods of the Hub's client that the room `hub` calls, and the functions of the same name."""
    called: set[str] = set()
    for path in (ROOT / "qlora_space" / "hub").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                called.add(node.attr)
            elif isinstance(node, ast.Name):
                called.add(node.id)
    return {name for name in called if callable(getattr(HfApi, name, None))}


def test_visitors_are_asked_for_the_scopes_that_the_calls_need_and_for_no_other() -> None:
    unknown = hub_calls() - {name for names in CALLS.values() for name in names}
    assert unknown == set(), "which scope does it need?"
    gone = {name for names in CALLS.values() for name in names} - hub_calls()
    assert gone == set()
    assert set(FRONT["hf_oauth_scopes"]) == {scope for scopes in CALLS for scope in scopes}


def test_the_page_does_without_the_library_of_zero_gpu_which_would_load_torch() -> None:
    files = [ROOT / "app.py", *(ROOT / "qlora_space").rglob("*.py")]
    asking = {f.name for f in files if re.search(r"^\s*(import|from) spaces", f.read_text(), re.M)}
    assert asking == {"gpu_functions.py", "platform.py"}


@pytest.mark.parametrize(
    "name",
    [
        "docs/images/new-run.png",
        "docs/images/run.png",
        "CONTRIBUTING.md",
        "docs/PERFORMANCE.md",
        "docs/LOG.md",
        "SECURITY.md",
    ],
)
def test_what_the_readme_shows_is_there(name: str) -> None:
    assert name in TEXT
    assert (ROOT / name).is_file()
