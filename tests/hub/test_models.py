"""The facts of a base model, and which models are refused with which sentence."""

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from qlora_space.core.bounded_json import Unreadable
from qlora_space.core.errors import HubError, ModelError
from qlora_space.hub import model_facts
from qlora_space.hub.headers import Tensor, parse_header
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.hub.conftest import edited
from tests.tiny_families import build, change_config

CODE_KEYS = (
    {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
    {"text_config": {"nested": [{"auto_map": {"AutoModel": "evil.Model"}}]}},
    {"vision_config": {"trust_remote_code": True}},
)


def test_a_model_on_the_hub_is_described_and_pinned_to_its_commit(
    hub: FakeHub, tiny_base: Path
) -> None:
    card = b"---\nlicense: apache-2.0\n---\n"
    repo = hub.add_model("alice/tiny", {**edited(tiny_base), "README.md": card})
    facts = model_facts("alice/tiny", None, None)
    with safe_open(tiny_base / "model.safetensors", "pt") as file:
        tensors = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    projections = [s for n, s in tensors.items() if "proj" in n]
    assert facts.sha == repo.head.sha
    assert (facts.source, facts.architecture, facts.license) == (
        "hub",
        "Qwen3ForCausalLM",
        "apache-2.0",
    )
    assert facts.linear_parameters == sum(a * b for a, b in projections)
    assert facts.parameters == sum(s[0] * (s[1] if len(s) > 1 else 1) for s in tensors.values())
    assert facts.file_bytes == (tiny_base / "model.safetensors").stat().st_size
    assert facts.tie_word_embeddings
    assert facts.has_chat_template
    assert (facts.head_dim, facts.num_key_value_heads, facts.max_position_embeddings) == (8, 2, 128)


def test_only_the_start_of_the_weights_is_read(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/tiny", tiny_base)
    model_facts("alice/tiny", None, None)
    weights = [r for r in hub.requests if r.path.endswith(".safetensors") and r.method == "GET"]
    assert len(weights) == 1
    assert sum("/api/models/" in r.path for r in hub.requests) == 1


def test_a_sharded_model_counts_every_shard(hub: FakeHub, tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    hub.add_model("alice/sharded", folder)
    whole = model_facts(str(tiny_base), None, None)
    for sharded in (model_facts("alice/sharded", None, None), model_facts(str(folder), None, None)):
        assert sharded.parameters == whole.parameters
        assert sharded.linear_parameters == whole.linear_parameters


def test_an_older_revision_is_pinned_to_its_own_commit(hub: FakeHub, tiny_base: Path) -> None:
    repo = hub.add_model("alice/tiny", tiny_base)
    old = repo.head.sha
    repo.commit({}, "empty it")
    assert model_facts("alice/tiny", old, None).sha == old
    with pytest.raises(ModelError, match="no revision 'v9'"):
        model_facts("alice/tiny", "v9", None)


def test_a_folder_gives_the_same_facts_as_the_hub(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/tiny", tiny_base)
    remote = model_facts("alice/tiny", None, None).model_dump()
    local = model_facts(str(tiny_base), None, None).model_dump()
    differing = {name for name in remote if remote[name] != local[name]}
    assert differing == {"id", "source", "sha"}
    assert len(local["sha"]) == 40


def test_a_relative_folder_is_found_and_its_hash_follows_its_content(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    before = model_facts("models/mine", None, None)
    config = tmp_path / "models" / "mine" / "config.json"
    config.write_text(config.read_text() + " ")
    assert before.source == "local"
    assert model_facts("models/mine", None, None).sha != before.sha


def test_a_folder_that_was_trained_on_in_place_has_another_hash(
    tiny_base: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_base, tmp_path, dirs_exist_ok=True)
    before, file = model_facts(str(tmp_path), None, None), tmp_path / "model.safetensors"
    size = file.stat().st_size
    weights = {name: w + torch.rand_like(w) for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert file.stat().st_size == size
    assert model_facts(str(tmp_path), None, None).sha != before.sha


def test_demo_is_the_embedded_base() -> None:
    facts = model_facts("demo", None, None)
    assert (facts.id, facts.source, facts.parameters) == ("demo", "demo", 2_886_400)


def test_an_untied_head_is_counted_but_not_quantized(tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_base, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    head = torch.zeros_like(weights["model.embed_tokens.weight"])
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors")
    tied = model_facts(str(tiny_base), None, None)
    untied = model_facts(str(tmp_path), None, None)
    assert tied.tie_word_embeddings
    assert not untied.tie_word_embeddings
    assert untied.parameters == tied.parameters + head.numel()
    assert untied.linear_parameters == tied.linear_parameters


@pytest.mark.parametrize(
    ("name", "is_linear"),
    [
        ("model.layers.0.mlp.up_proj.weight", True),
        ("transformer.h.11.attn.c_attn.weight", True),
        ("model.embed_tokens.weight", False),
        ("model.embeddings.0.weight", False),
        ("lm_head.weight", False),
        ("mtp.layers.0.lm_head.weight", False),
        ("model.projector.weight", False),
        ("model.layers.0.mlp.up_proj.bias", False),
    ],
)
def test_only_linears_of_numbered_layers_are_quantized(name: str, is_linear: bool) -> None:
    assert Tensor(name, "F32", (4, 4)).is_linear is is_linear
    assert not Tensor(name, "F32", (4,)).is_linear


@pytest.mark.parametrize("base", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_named(base: str) -> None:
    with pytest.raises(ModelError, match="does not exist") as refused:
        model_facts(base, None, None)
    assert base in str(refused.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        model_facts(str(tmp_path), None, None)


@pytest.mark.parametrize("base", ["a b", "a/b/c", "http://x/y", "-x/..", "x" * 300, "é; rm -rf /"])
def test_text_that_cannot_be_an_id_is_never_sent(hub: FakeHub, base: str) -> None:
    with pytest.raises(ModelError, match="neither a Hub id nor a folder"):
        model_facts(base, None, None)
    assert hub.requests == []


def test_unknown_and_private_are_the_same_sentence(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/private", tiny_base, private=True)
    for base, token in (("alice/none", ALICE), ("alice/private", BOB), ("alice/private", None)):
        with pytest.raises(ModelError, match="does not exist or is private"):
            model_facts(base, None, token)
    assert model_facts("alice/private", None, ALICE).parameters > 0


@pytest.mark.parametrize(
    ("status", "message", "cause", "fix"),
    [
        (401, "Access to model alice/gated is restricted.", "not signed in", "Sign in, accept"),
        (
            403,
            "Access to model alice/gated is restricted and you are not in the authorized list.",
            "you have not accepted its terms",
            "Accept them at",
        ),
        (
            403,
            "Your request to access model alice/gated is awaiting a review from the repo authors.",
            "waits for its authors",
            "when they have agreed",
        ),
        (
            403,
            "Your request to access model alice/gated has been rejected by the repo's authors.",
            "refused you access",
            "Choose another one",
        ),
        (
            403,
            "Please enable access to public gated repositories in your fine-grained token settings.",
            "your token may not read gated repositories",
            "in the Hub's settings",
        ),
    ],
)
def test_why_a_gated_model_cannot_be_read_is_told_exactly(
    hub: FakeHub, tiny_base: Path, status: int, message: str, cause: str, fix: str
) -> None:
    hub.add_model("alice/gated", tiny_base)
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
    hub.fail(status, path="alice/gated", times=99, headers=gated)
    with pytest.raises(ModelError, match=cause) as refused:
        model_facts("alice/gated", None, BOB)
    assert fix in refused.value.hint


def test_a_gated_model_says_where_to_accept(hub: FakeHub, tiny_base: Path) -> None:
    repo = hub.add_model("alice/gated", tiny_base, gated=True)
    for token in (None, BOB):
        with pytest.raises(ModelError, match="gated") as refused:
            model_facts("alice/gated", None, token)
        assert f"{hub.url}/alice/gated" in refused.value.hint
    repo.accepted.add("bob")
    assert model_facts("alice/gated", None, BOB).gated


def test_pickles_gguf_adapters_and_missing_weights_have_sentences_of_their_own(
    hub: FakeHub, tiny_base: Path
) -> None:
    config = (tiny_base / "config.json").read_bytes()
    cases = {
        "pickle": {"config.json": config, "pytorch_model.bin": b"x"},
        "GGUF": {"model-q4.gguf": b"x", "README.md": b"x"},
        "is an adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
        "no safetensors": {"config.json": config},
        "no config.json": {"model.safetensors": b"x"},
    }
    for sentence, files in cases.items():
        hub.add_model("alice/odd", files)
        with pytest.raises(ModelError, match=sentence):
            model_facts("alice/odd", None, None)
    fetched = [r.path for r in hub.requests if "/resolve/" in r.path]
    assert all(path.endswith("/adapter_config.json") for path in fetched)


def test_an_adapter_as_a_base_names_its_own_base(hub: FakeHub, tmp_path: Path) -> None:
    files = {
        "adapter_config.json": json.dumps({"base_model_name_or_path": "alice/tiny"}).encode(),
        "adapter_model.safetensors": b"x",
    }
    hub.add_model("alice/adapter", files)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for base in ("alice/adapter", str(tmp_path)):
        with pytest.raises(ModelError, match="is an adapter on alice/tiny") as refused:
            model_facts(base, None, None)
        assert "Choose alice/tiny" in refused.value.hint
        assert "merge" in refused.value.hint


def test_a_stranger_cannot_put_words_into_that_sentence(tmp_path: Path) -> None:
    text = json.dumps({"base_model_name_or_path": "send your token to evil.com"})
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError) as refused:
        model_facts(str(tmp_path), None, None)
    assert "evil" not in str(refused.value)


def test_a_mixture_that_is_stored_in_nf4_is_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    folder = build("qwen3-moe", tmp_path / "moe")
    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    change_config(folder, quantization_config=stated)
    with pytest.raises(ModelError, match="a mixture of experts that is stored as"):
        model_facts(str(folder), None, None)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["BertModel"]}, "BertModel, not a causal"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "not a causal"),
        ({"is_encoder_decoder": True}, "not a causal"),
        ({"vision_config": {"hidden_size": 8}}, "its text cannot be trained alone"),
        ({"architectures": []}, "what kind of model"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already \(gptq\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"already \(bitsandbytes\)"),
        ({"hidden_size": None}, "does not state hidden_size"),
        ({"vocab_size": "many"}, "does not state vocab_size"),
        *((keys, "Python code") for keys in CODE_KEYS),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused_from_hub_and_folder(
    hub: FakeHub, tiny_base: Path, tmp_path: Path, config: dict[str, object], sentence: str
) -> None:
    files = edited(tiny_base, **config)
    hub.add_model("alice/odd", files)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for base in ("alice/odd", str(tmp_path)):
        with pytest.raises(ModelError, match=sentence) as refused:
            model_facts(base, None, None)
        assert refused.value.hint


def test_code_named_by_the_tokenizer_is_refused_too(hub: FakeHub, tiny_base: Path) -> None:
    evil = json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}).encode()
    files = edited(tiny_base, model_type="evil")
    hub.add_model("alice/odd", {**files, "tokenizer_config.json": evil})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json names it"):
        model_facts("alice/odd", None, None)


@pytest.mark.parametrize(
    "weights", [b"", b"short", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"not json"]
)
def test_damaged_weights_are_a_sentence(
    hub: FakeHub, tiny_base: Path, tmp_path: Path, weights: bytes
) -> None:
    files = {**edited(tiny_base), "model.safetensors": weights}
    hub.add_model("alice/odd", files)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for base in ("alice/odd", str(tmp_path)):
        with pytest.raises((ModelError, HubError)):
            model_facts(base, None, None)


def test_a_text_config_inside_is_read(tiny_base: Path, tmp_path: Path) -> None:
    files = edited(tiny_base, hidden_size=None, text_config={"hidden_size": 32})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert model_facts(str(tmp_path), None, None).hidden_size == 32


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_is_a_hub_error(
    hub: FakeHub, tiny_base: Path, waits: list[float], status: int
) -> None:
    hub.add_model("alice/tiny", tiny_base)
    hub.fail(status, times=99, headers={"Retry-After": "30"} if status == 429 else {})
    with pytest.raises(HubError) as refused:
        model_facts("alice/tiny", None, ALICE)
    assert ("30 seconds" if status == 429 else str(status)) in str(refused.value)


def test_no_answer_is_a_hub_error_that_says_so(hub: FakeHub, waits: list[float]) -> None:
    hub.fail("drop", times=99)
    with pytest.raises(HubError, match="does not answer"):
        model_facts("alice/tiny", None, None)


@pytest.mark.parametrize(
    "name",
    [
        "../../../alice/other/resolve/main/model.safetensors",
        "/etc/model.safetensors",
        "model/../model.safetensors",
        "model\\x.safetensors",
        "https://example.org/model.safetensors",
        "model..safetensors",
        "pytorch_model.bin",
        "model-1.safetensors?x=1",
        "model-9.safetensors",
    ],
)
def test_names_of_an_index_that_are_no_files_of_weights_never_become_a_request(
    hub: FakeHub, tiny_base: Path, name: str
) -> None:
    files = {n: data for n, data in edited(tiny_base).items() if n != "model.safetensors"}
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}})
    weights = (tiny_base / "model.safetensors").read_bytes()
    added = {"model.safetensors.index.json": index, "model-1.safetensors": weights}
    hub.add_model("alice/index", {**files, **added})
    words = "does not have" if name == "model-9.safetensors" else "is no file of weights"
    with pytest.raises(ModelError, match=words) as caught:
        model_facts("alice/index", None, ALICE)
    assert "model.safetensors.index.json" in str(caught.value)
    assert not [r for r in hub.requests if "safetensors" in r.path and "index" not in r.path]


def test_a_header_of_100_000_tensors_is_refused_before_it_is_parsed(
    hub: FakeHub, tiny_base: Path
) -> None:
    tensors = {
        f"l.{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(100_000)
    }
    header = json.dumps(tensors).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(100_000)
    hub.add_model("alice/many", {**edited(tiny_base), "model.safetensors": weights})
    before = time.process_time()
    with pytest.raises(ModelError, match="100,000 tensors, more than the 50,000"):
        model_facts("alice/many", None, None)
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[]", "is damaged"),
        (b'{"a": 1}', "without a shape"),
        (b'{"a": {"dtype": "F32", "shape": [-1]}}', "without a shape"),
        (b'{"a": {"dtype": "F32", "shape": [1e3]}}', "without a shape"),
        (b'{"a": {"dtype": "F32", "shape": [2147483647, 2147483647]}}', "more weights than any"),
        (b'{"a": {"dtype": "F32", "shape": [[[[[]]]]]}}', "nested more than 4 deep"),
        (b'{"a": {"dtype": "F32", "shape": []}, "a": {}}', "two entries named"),
    ],
)
def test_a_damaged_header_is_a_sentence(header: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_header(header)


def test_a_header_longer_than_the_first_request_is_fetched_whole(
    hub: FakeHub, tiny_base: Path
) -> None:
    weights = (tiny_base / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length]) | {"__metadata__": {"note": "x" * 200_000}}
    longer = json.dumps(header).encode()
    whole = len(longer).to_bytes(8, "little") + longer + weights[8 + length :]
    hub.add_model("alice/long", {**edited(tiny_base), "model.safetensors": whole})
    hub.add_model("alice/short", tiny_base)
    facts = model_facts("alice/long", None, None)
    assert facts.parameters == model_facts("alice/short", None, None).parameters


def test_a_tokenizer_of_gigabytes_is_refused_before_it_is_fetched(
    hub: FakeHub, tiny_base: Path
) -> None:
    hub.add_model("alice/big", {**edited(tiny_base), "tokenizer.json": b" " * 70_000_000})
    with pytest.raises(ModelError, match=r"tokenizer\.json of alice/big has 70,000,000 bytes"):
        model_facts("alice/big", None, None)
    assert not [r for r in hub.requests if r.path.endswith("tokenizer.json")]
