"""A demo Space is generated from a run: its code is whole whatever the run is called, it is made once, and holds no
token."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import HubError, HubUnavailable, RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.connection import is_repo_id
from qlora_space.hub.demo_space import demo_of
from qlora_space.hub.demo_space_files import DemoSpace, app_code, literal
from qlora_space.hub.publish_run import publish_run
from qlora_space.plan import Plan
from qlora_space.runs import Publication, PushRequest, RunFolder
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.hub.conftest import dataset_of, model_of, plan_of, report_of
from tests.runs.folders import demo_run

ADAPTER, SPACE = "alice/tea", "alice/tea-demo"
TO_SPACE = PushRequest(repo=SPACE, what="demo-space", private=False)
HOSTILE = (
    '"""\nimport os; os.system("x")\n"""',
    "</script><img src=x onerror=alert(1)> [a](javascript:alert(1)) ${x} {y} \\",
    "\u202eevil\x00\r\nname\ud800\u2028",
)


def planned(run: RunFolder, plan: Plan) -> RunFolder:
    (run.path / "plan.json").write_text(plan.model_dump_json())
    return RunFolder(run.path)


@pytest.fixture
def run(tmp_path: Path, adapter_folder: Path) -> RunFolder:
    """A finished 4-bit run on a base of the Hub."""
    found = demo_run(tmp_path)
    shutil.copytree(adapter_folder, found.adapter_folder)
    found.report_file.write_text(report_of().model_dump_json())
    return planned(found, plan_of(TrainingRequest(bits=4)))


@pytest.fixture
def published(hub: FakeHub, run: RunFolder) -> RunFolder:
    hub.add_model("alice/base", {"config.json": b"{}"})
    publish_run(run, PushRequest(repo=ADAPTER, private=False), ALICE)
    return run


def of_size(run: RunFolder, parameters: int, **changes: Any) -> RunFolder:
    base = model_of(parameters=parameters, linear_parameters=parameters * 9 // 10, **changes)
    return planned(run, plan_of(TrainingRequest(bits=4), base))


def strings_of(code: str) -> list[str]:
    nodes = ast.walk(ast.parse(code))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("hardware", ["zero-a10g", "cpu-basic"])
def test_no_name_or_prompt_breaks_out_of_the_code(
    run: RunFolder, hardware: Any, name: str, tmp_path: Path
) -> None:
    plan = plan_of(TrainingRequest(bits=4), dataset=dataset_of(is_public=True))
    row = {"messages": [{"role": "user", "content": name}], "expected": ""}
    run.data_folder.mkdir()
    (run.data_folder / "eval_examples.jsonl").write_text(json.dumps(row) + "\n")
    space = DemoSpace(name, SPACE, ADAPTER, "f" * 40, hardware, 4, 1.0, ())
    code = app_code(space, run, plan)
    assert code.isascii()
    tree = ast.parse(code)
    assert name in strings_of(code), "a prompt stays what it is"
    (run.data_folder / "eval_examples.jsonl").write_text(
        json.dumps(row).replace(json.dumps(name), '"Who?"') + "\n"
    )
    plain = app_code(DemoSpace("Tea", SPACE, ADAPTER, "f" * 40, hardware, 4, 1.0, ()), run, plan)
    assert [type(n) for n in ast.walk(tree)] == [type(n) for n in ast.walk(ast.parse(plain))]
    ruff(tmp_path, code, "check", "--select", "E4,E7,E9,F,I,B")
    ruff(tmp_path, plain, "format", "--check", "--line-length", "100")
    assert len(code.splitlines()) <= 100


def ruff(folder: Path, code: str, *command: str) -> None:
    (folder / "app.py").write_text(code)
    asked = [sys.executable, "-m", "ruff", *command, "--isolated", folder / "app.py"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + code


def test_a_literal_is_the_text_whatever_it_is() -> None:
    for text in (*HOSTILE, "", '"', "\\", '\\"', "\\\\'", "é😀"):
        assert ast.literal_eval(literal(text)) == text
        assert "\n" not in literal(text)
    assert literal(None) == "None"


def test_it_is_one_commit_of_readable_files_that_name_what_they_are_of(
    hub: FakeHub, published: RunFolder
) -> None:
    done = publish_run(published, TO_SPACE, ALICE)
    space = hub.repo("space", SPACE)
    assert (len(space.commits), done.created, space.private) == (2, True, False)
    assert space.space.hardware == "cpu-basic"
    assert space.space.secrets == {}
    front = yaml.safe_load(space.files["README.md"].decode().split("---\n")[1])
    assert front["models"] == [ADAPTER, "alice/base"]
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    adapter = hub.repo("model", ADAPTER)
    code = space.files["app.py"].decode()
    assert adapter.head.sha in strings_of(code)
    assert "a" * 40 in strings_of(code), "the commit of the base"
    assert "qlora_space" not in {n.name for n in _imports(code)}
    assert space.files["requirements.txt"].decode().split() == [
        "accelerate", "peft==0.21.2", "transformers", "torch",
    ]  # fmt: skip
    everything = b"".join(space.files.values()).decode()
    assert ALICE not in everything
    assert done.notes == ()
    assert "On a CPU" in space.files["README.md"].decode()
    assert [p.what for p in published.all_publications()] == ["adapter", "demo-space"]
    assert [p.repo for p in published.publications()] == [ADAPTER], "it is no place of the adapter"


def _imports(code: str) -> list[ast.alias]:
    nodes = ast.walk(ast.parse(code))
    return [a for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]


def test_a_newer_adapter_is_one_more_commit_and_the_same_one_is_none(
    hub: FakeHub, published: RunFolder
) -> None:
    publish_run(published, TO_SPACE, ALICE)
    publish_run(published, TO_SPACE, ALICE)
    assert len(hub.repo("space", SPACE).commits) == 2
    published.report_file.write_text(report_of(steps=61).model_dump_json())
    publish_run(published, PushRequest(repo=ADAPTER, private=False), ALICE)
    publish_run(published, TO_SPACE, ALICE)
    assert len(hub.repo("space", SPACE).commits) == 3
    newest = hub.repo("model", ADAPTER).head.sha
    assert newest in hub.repo("space", SPACE).files["app.py"].decode()


def test_an_answer_that_is_lost_does_not_make_two(
    hub: FakeHub, published: RunFolder, waits: list[float]
) -> None:
    hub.fail("lose", path="/api/repos/create")
    hub.fail("lose", path="/commit/")
    publish_run(published, TO_SPACE, ALICE)
    assert len(hub.repo("space", SPACE).commits) == 2
    assert not hub.repo("space", SPACE).private


def test_a_hub_that_is_away_leaves_it_to_be_sent_again_by_itself(
    hub: FakeHub, published: RunFolder, waits: list[float]
) -> None:
    hub.fail(503, path="/commit/", times=99)
    with pytest.raises(HubUnavailable):
        publish_run(published, TO_SPACE, ALICE)
    unsent = published.unsent_push()
    assert unsent
    assert unsent.request.what == "demo-space"
    assert hub.repo("space", SPACE).private, "nobody sees an empty one"
    hub.faults.clear()
    publish_run(published, unsent.request, ALICE)
    assert not hub.repo("space", SPACE).private
    assert published.unsent_push() is None


@pytest.mark.parametrize(
    ("status", "words"),
    [(402, "wants a paid plan or a payment method"), (403, "does not let this account or token")],
)
def test_what_an_account_may_not_make_is_said_with_another_way(
    hub: FakeHub, published: RunFolder, status: int, words: str
) -> None:
    hub.fail(status, path="/api/repos/create", times=9)
    with pytest.raises(HubError, match=words) as refused:
        publish_run(published, TO_SPACE, ALICE)
    assert "“Share” on its page" in refused.value.hint
    assert ("space", SPACE) not in hub.repos
    assert published.unsent_push() is None, "nothing waits that a person has to send anew"


def test_a_private_adapter_makes_a_private_space_and_no_token_goes_there(
    hub: FakeHub, run: RunFolder
) -> None:
    hub.add_model("alice/base", {"config.json": b"{}"})
    publish_run(run, PushRequest(repo=ADAPTER), ALICE)
    done = publish_run(run, TO_SPACE, ALICE)
    space = hub.repo("space", SPACE)
    assert space.private
    assert space.space.secrets == {}
    (note,) = done.notes
    assert "cannot read the adapter, which is private: add a secret HF_TOKEN" in note
    assert "secret HF_TOKEN in its settings" in space.files["README.md"].decode().replace(
        "&#95;", "_"
    )


def test_a_gated_base_is_said(hub: FakeHub, published: RunFolder) -> None:
    gated = of_size(published, 30_000, gated=True)
    assert "cannot read the base, which is gated" in publish_run(gated, TO_SPACE, ALICE).notes[0]


def test_a_private_base_makes_a_private_space_and_is_said(
    hub: FakeHub, published: RunFolder
) -> None:
    hub.repo("model", "alice/base").private = True
    (note,) = publish_run(published, TO_SPACE, ALICE).notes
    assert "cannot read the base, which is private: add a secret" in note
    assert hub.repo("space", SPACE).private


def test_both_that_are_private_are_said_in_one_sentence(hub: FakeHub, run: RunFolder) -> None:
    hub.add_model("alice/base", {"config.json": b"{}"}, private=True)
    publish_run(run, PushRequest(repo=ADAPTER), ALICE)
    (note,) = publish_run(run, TO_SPACE, ALICE).notes
    assert "cannot read the adapter and the base, which are private: add" in note


def test_hardware_follows_the_size_of_the_base_and_the_reason_names_it(
    published: RunFolder,
) -> None:
    chosen = demo_of(of_size(published, 600_000_000))
    assert (chosen.hardware, chosen.bits) == ("cpu-basic", 16)
    assert "1.1 GiB at 16 bits" in chosen.why
    assert "trained on 4 bits, so answers may differ" in chosen.why
    large = of_size(published, 8_000_000_000)
    chosen = demo_of(large)
    assert (chosen.hardware, chosen.bits) == ("zero-a10g", 4)
    assert "4.9 GiB at 4 bits" in chosen.why
    with pytest.raises(RunError, match="more than ZeroGPU lends"):
        demo_of(of_size(published, 120_000_000_000))


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"parameters": 70_000_000_000}, "takes 130 GiB at 16 bits, more than the 1.5 GiB"),
        (
            {"quantization": "bitsandbytes", "quantized_bits": 4, "file_bytes": 300 * 2**20},
            "0.29 GiB",
        ),
        ({"expert_bits": 4.25, "parameters": 1000}, "packed weights"),
    ],
)
def test_a_cpu_that_a_person_chooses_is_refused_where_the_base_does_not_run_on_it(
    published: RunFolder, base: dict[str, Any], words: str
) -> None:
    of_base = planned(published, plan_of(TrainingRequest(bits=4), model_of(**base)))
    with pytest.raises(RunError, match=words) as refused:
        demo_of(of_base, "cpu-basic")
    assert refused.value.hint == "Choose ZeroGPU."


def with_rows(run: RunFolder, *rows: list[str]) -> RunFolder:
    """Held-out rows, of turns such as 'user: Who?'."""
    run.data_folder.mkdir(exist_ok=True)
    turns = [
        [dict(zip(("role", "content"), t.split(": ", 1), strict=True)) for t in r] for r in rows
    ]
    lines = [json.dumps({"messages": each, "expected": "Me."}) + "\n" for each in turns]
    (run.data_folder / "eval_examples.jsonl").write_text("".join(lines))
    return run


def code_of(run: RunFolder, **data: Any) -> str:
    plan = plan_of(TrainingRequest(bits=4), dataset=dataset_of(**{"is_public": True, **data}))
    return app_code(DemoSpace("Tea", SPACE, ADAPTER, "f" * 40, "cpu-basic", 16, 1.0, ()), run, plan)


def constant(code: str, name: str) -> Any:
    found = (n for n in ast.parse(code).body if isinstance(n, ast.Assign))
    return next(
        (ast.literal_eval(n.value) for n in found if ast.unparse(n.targets[0]) == name), None
    )


def test_examples_are_asked_as_they_were_trained(run: RunFolder) -> None:
    later = ["user: A", "assistant: B", "user: And then?"]
    code = code_of(with_rows(run, later, ["system: Be brief.", "user: Who?"], ["user: Where?"]))
    assert constant(code, "EXAMPLES") == ["Where?"], "what is left out needs more than its prompt"
    assert constant(code, "SYSTEM") is None


@pytest.mark.parametrize("system", ["Be brief.", *HOSTILE[:2]])
def test_a_system_text_that_all_rows_share_goes_before_the_prompt(
    run: RunFolder, system: str, tmp_path: Path
) -> None:
    rows = [f"system: {system}", "user: Who?"], [f"system: {system}", "user: Where?"]
    code = code_of(with_rows(run, *rows))
    assert constant(code, "SYSTEM") == system
    assert constant(code, "EXAMPLES") == ["Who?", "Where?"]
    ruff(tmp_path, code, "check", "--select", "E4,E7,E9,F,I,B")
    assert len(code.splitlines()) <= 110
    assert system not in strings_of(code_of(run, is_public=False)), "it is of the data too"


EACH = "{% for m in messages %}ONE[{{ m.role }}] {{ m.content | trim }}{% endfor %}"
REFUSES = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (EACH.replace("ONE", ""), "[system] Be brief.[user] Who?"),
        (EACH.replace("ONE", REFUSES), "[user] Be brief.\n\nWho?"),
        (EACH.replace("messages", "messages if m.role != 'system'"), "[user] Be brief.\n\nWho?"),
    ],
)
def test_the_system_text_is_where_the_template_has_it(
    run: RunFolder, template: str, turns: str
) -> None:
    from transformers import AutoTokenizer

    code = code_of(with_rows(run, ["system: Be brief.", "user: Who?"]))
    asked = next(
        n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == "answer"
    )
    upto = next(i for i, n in enumerate(asked.body) if ast.unparse(n).startswith("inputs = "))
    tokenizer = AutoTokenizer.from_pretrained(run.adapter_folder)
    tokenizer.chat_template = template.replace("ONE", "")
    names: dict[str, Any] = {"SYSTEM": "Be brief.", "prompt": "Who?", "tokenizer": tokenizer}
    exec(ast.unparse(ast.Module(asked.body[: upto + 1], [])), names)  # its own lines
    assert tokenizer.decode(names["inputs"]["input_ids"][0]) == turns


def test_a_space_that_has_other_hardware_keeps_it_and_says_so(
    hub: FakeHub, published: RunFolder
) -> None:
    publish_run(published, TO_SPACE, ALICE)
    again = TO_SPACE.model_copy(update={"hardware": "zero-a10g"})
    done = publish_run(published, again, ALICE)
    assert "runs on cpu-basic and was made for ZeroGPU" in done.notes[-1]
    assert "spaces.GPU" in hub.repo("space", SPACE).files["app.py"].decode()


def noted(run: RunFolder, **changes: Any) -> RunFolder:
    """Published, as far as the run knows."""
    done = Publication(repo=ADAPTER, url="u", commit="c" * 40, num_files=1, created=True, time=1.0)
    run.add_publication(done.model_copy(update=changes))
    return run


def test_an_adapter_that_is_not_published_has_no_demo(hub: FakeHub, run: RunFolder) -> None:
    with pytest.raises(RunError, match="was not published"):
        publish_run(run, TO_SPACE, ALICE)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("bits", "base", "words"),
    [
        (4, {"source": "local"}, "is a folder"),
        (2, {}, "loaded by qlora_space only"),
        (4, {"quantization": "gptq", "quantized_bits": 4}, "stored as gptq"),
        (16, {"read_as": "FP8"}, "stored as FP8"),
    ],
)
def test_what_no_space_can_load_has_a_sentence_before_any_request(
    hub: FakeHub, run: RunFolder, bits: Any, base: dict[str, Any], words: str
) -> None:
    planned(noted(run), plan_of(TrainingRequest(bits=bits, group_size=32), model_of(**base)))
    with pytest.raises(RunError, match=words):
        publish_run(RunFolder(run.path), TO_SPACE, ALICE)
    assert hub.requests == []


def test_the_repaired_adapter_of_a_low_bit_run_is_shown_on_the_16_bit_base(run: RunFolder) -> None:
    planned(noted(run, for_16_bit=True), plan_of(TrainingRequest(bits=2, group_size=32)))
    assert demo_of(RunFolder(run.path)).bits == 16


def test_a_name_of_somebody_else_or_of_another_thing_is_not_touched(
    hub: FakeHub, published: RunFolder
) -> None:
    hub.add_space(SPACE, {"app.py": "print('mine')", ".gitattributes": ""})
    with pytest.raises(HubError, match="not from this run"):
        publish_run(published, TO_SPACE, ALICE)
    assert hub.repo("space", SPACE).files["app.py"] == b"print('mine')"
    with pytest.raises(HubError, match="may only read"):
        publish_run(published, TO_SPACE, BOB)


def test_a_published_name_that_is_none_is_not_taken(run: RunFolder) -> None:
    bad = 'a/b"\nimport os'
    assert not is_repo_id(bad)
    noted(run, repo=bad)
    with pytest.raises(RunError, match="was not published"):
        demo_of(run)


def test_the_demos_own_base_comes_along(hub: FakeHub, published: RunFolder) -> None:
    planned(published, plan_of(TrainingRequest(bits=4), model_of("demo")))
    publish_run(RunFolder(published.path), TO_SPACE, ALICE)
    files = hub.repo("space", SPACE).files
    weights = (BASE_FOLDER / "model.safetensors").read_bytes()
    assert files["base/model.safetensors"] == weights


def test_a_demo_that_has_the_name_of_a_model_waits_and_goes_by_itself(
    hub: FakeHub, published: RunFolder, waits: list[float]
) -> None:
    """A Space may be called as the adapter is: neither takes the other's unsent push for its own."""
    push = TO_SPACE.model_copy(update={"repo": ADAPTER})
    hub.fail(503, path="/api/spaces/.*/commit/", times=99)
    with pytest.raises(HubUnavailable):
        publish_run(published, push, ALICE)
    publish_run(published, PushRequest(repo=ADAPTER, private=False), ALICE)
    unsent = published.unsent_push()
    assert unsent
    assert unsent.request == push, "the adapter's push leaves the demo's waiting"
