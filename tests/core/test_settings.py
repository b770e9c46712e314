from pathlib import Path

import pytest

from qlora_space.core.errors import RequestError
from qlora_space.core.settings import load_settings

NAMES = (
    "QLORA_SPACE_HOME",
    "XDG_DATA_HOME",
    "SPACE_ID",
    "GRADIO_SERVER_NAME",
    "GRADIO_SERVER_PORT",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_a_word_it_is_the_users_data_folder_and_this_machine_only() -> None:
    settings = load_settings()
    assert settings.home == (Path.home() / ".local" / "share" / "qlora-space").resolve()
    assert (settings.host, settings.port, settings.is_space) == ("127.0.0.1", 7860, False)


def test_a_space_is_reached_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert load_settings().host == "0.0.0.0"
    assert load_settings().is_space


def test_the_home_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_SPACE_HOME", str(tmp_path / "x" / ".." / "y"))
    assert load_settings().runs_folder == (tmp_path / "y" / "runs").resolve()
    monkeypatch.setenv("QLORA_SPACE_HOME", "~/z")
    assert load_settings().home == Path.home().resolve() / "z"


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "7860.5"])
def test_a_port_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    with pytest.raises(RequestError, match=f"GRADIO_SERVER_PORT is '{port}'"):
        load_settings()
