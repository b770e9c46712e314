"""Every card's command can be typed: what it installs exists, and what the code imports is in it."""

import json
import re

import pytest
from packaging.requirements import Requirement

from qlora_space import __version__
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_card
from qlora_space.hub.card.how_to_load import source_of
from qlora_space.places.environment import child_environment
from tests.hub.conftest import model_of, plan_of, report_of

COMMIT = "0123456789abcdef" * 2 + "01234567"
REPOSITORY = "https://example.org/alice/qlora_space"
FOLDER = "path/to/qlora_space"
OTHERS = {"peft", "bitsandbytes", "optimum", "gptqmodel"}
CARDS: dict[str, tuple[dict[str, object], dict[str, object], dict[str, bool]]] = {
    "4 bits": ({}, {}, {}),
    "8 bits": ({"bits": 8}, {}, {}),
    "16 bits": ({"bits": 16}, {}, {}),
    "gptq": ({}, {"quantization": "gptq", "quantized_bits": 4}, {}),
    "local": ({}, {"source": "local"}, {}),
    "demo": ({}, {"source": "demo"}, {}),
    "demo, 2 bits": ({"bits": 2, "group_size": 32}, {"source": "demo"}, {}),
    "2 bits": ({"bits": 2, "group_size": 32}, {}, {}),
    "2 bits, for 16 bit": ({"bits": 2, "group_size": 32}, {}, {"for_16_bit": True}),
    "2 bits, with base": ({"bits": 2, "group_size": 32}, {}, {"with_base": True}),
}
each_card = pytest.mark.parametrize("name", CARDS)


@pytest.fixture(autouse=True)
def not_on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)


def section(name: str) -> str:
    fields, facts, kind = CARDS[name]
    request = TrainingRequest.model_validate(
        {"base": "alice/base", "dataset": "alice/data"} | fields
    )
    plan = plan_of(request, model_of().model_copy(update=facts))
    card = model_card(plan, report_of(), request, [], "alice/new", **kind)
    return card.split("## How to load it")[1].split("\n## ")[0]


def block(text: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)\n```", text, re.S)
    return found


def direct_url(**changes: object) -> str:
    """What pip writes when it installs from git."""
    vcs = {"vcs": "git", "requested_revision": "main", "commit_id": COMMIT}
    return json.dumps({"url": REPOSITORY, "vcs_info": vcs} | changes)


@each_card
def test_a_card_has_one_command_that_installs_what_the_code_imports(name: str) -> None:
    text = section(name)
    command, _, comment = block(text, "sh").partition("  # ")
    installed = set(command.removeprefix("pip install ").split())
    if "qlora_space" in block(text, "python"):
        assert installed == {FOLDER}
        assert comment == f"qlora_space {__version__} from the folder with its source code"
    else:
        assert "peft" in installed
        assert installed <= OTHERS
    assert not re.search(r"pip install [\"']?qlora-space[\"']?(?! @)", text)


@each_card
def test_the_code_compiles_and_what_it_imports_from_us_is_there(name: str) -> None:
    code = block(section(name), "python")
    compile(code, name, "exec")
    for line in code.splitlines():
        if line.startswith("from qlora_space"):
            exec(line, {})


@pytest.mark.parametrize("name", ["demo", "2 bits", "2 bits, with base"])
def test_on_a_space_the_card_installs_from_the_space(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACE_ID", "alice/tuner")
    source = '"qlora-space @ git+https://huggingface.co/spaces/alice/tuner"'
    assert block(section(name), "sh").startswith(f"pip install {source}  # qlora_space ")
    assert child_environment()["SPACE_ID"] == "alice/tuner"  # a worker publishes too


def test_installed_from_git_the_card_names_that_commit_on_a_space_too() -> None:
    for space_id in ("", "alice/tuner"):
        source, _ = source_of(direct_url(), space_id)
        requirement = Requirement(source.strip('"'))
        assert requirement.name == "qlora-space"
        assert requirement.url == f"git+{REPOSITORY}@{COMMIT}"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "not json",
        direct_url(url="https://alice:hf_secret@example.org/alice/qlora_space"),
        direct_url(url="https://hf_secret@example.org/alice/qlora_space"),
        direct_url(url="ssh://git@example.org/alice/qlora_space"),
        direct_url(url="file:///home/alice/qlora_space"),
        direct_url(url=REPOSITORY + '" evil'),
        direct_url(vcs_info={"vcs": "git", "commit_id": "main"}),
        direct_url(vcs_info={"vcs": "hg", "commit_id": COMMIT}),
        direct_url(vcs_info=None),
        direct_url(subdirectory="python"),
        json.dumps({"url": "file:///home/alice/qlora_space", "dir_info": {"editable": True}}),
    ],
)
def test_an_address_that_others_cannot_use_or_must_not_see_is_not_shown(text: str | None) -> None:
    assert source_of(text, "")[0] == FOLDER


@pytest.mark.parametrize("space_id", ["", "alice", 'a/b" evil', "a/b/c", "../b"])
def test_only_a_spaces_name_goes_into_the_command(space_id: str) -> None:
    assert source_of(None, space_id)[0] == FOLDER
