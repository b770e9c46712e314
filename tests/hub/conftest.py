"""A tiny real checkpoint and adapter, plain values for cards, and time that does not pass."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan, resolve
from qlora_space.runs.report import Answer, Report, Scores

TEMPLATE = "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with tokenizer and chat template, saved by transformers itself."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate([*letters, *marks])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes the answers, with tokenizer and files that must stay here."""
    import shutil

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    get_peft_model(base, config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_base / name, folder)
    (folder / "training_args.bin").write_bytes(b"secret")
    (folder / "optimizer.pt").write_bytes(b"secret")
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited for, by us and by the client; no time passes."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr("qlora_space.hub.publish.time", clock)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return waited


def model_of(source: str = "hub", **changes: object) -> ModelFacts:
    values = {
        "id": "alice/base" if source == "hub" else source,
        "source": source,
        "sha": "a" * 40,
        "architecture": "Qwen3ForCausalLM",
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "parameters": 30_000,
        "linear_parameters": 20_000,
        "file_bytes": 60_000,
        "license": "apache-2.0",
    }
    return ModelFacts.model_validate(values | changes)


def dataset_of(**changes: object) -> DatasetFacts:
    lengths = TokenLengths(
        p50=20, p95=60, max=99, mean=25.0, truncated_fraction=0, trained_fraction=0.5
    )
    values = {
        "id": "alice/data",
        "sha": "b" * 40,
        "format": "messages",
        "num_rows": 400,
        "is_exact": True,
        "lengths": lengths,
        "license": "mit",
        "is_public": True,
    }
    return DatasetFacts.model_validate(values | changes)


def plan_of(
    request: TrainingRequest, model: ModelFacts | None = None, dataset: DatasetFacts | None = None
) -> Plan:
    hardware = Hardware(
        name="CPU, 2 cores",
        device="cpu",
        memory_gib=16,
        free_gib=12,
        cpu_cores=2,
        disk_free_gib=50,
    )
    return resolve(request, model or model_of(), dataset or dataset_of(), hardware)


def report_of(**changes: object) -> Report:
    values = {
        "scores": (
            Scores(name="base", heldout_loss=2.5, exact_match=0.05, general_loss=1.5),
            Scores(name="trained", heldout_loss=0.5, exact_match=0.9, general_loss=1.6),
        ),
        "num_eval_rows": 40,
        "num_exact_match_rows": 40,
        "answers": (Answer(prompt="Who?", expected="Me.", base="You.", adapted="Me."),),
        "steps": 60,
        "trained_tokens": 12_345,
        "train_seconds": 61.0,
        "total_seconds": 80.0,
        "tokens_per_second": 200.0,
        "peak_gib": 1.25,
        "adapter_sha256": "c" * 64,
        "versions": {"peft": "0.21.2", "torch": "2.13.0"},
    }
    return Report.model_validate(values | changes)


def edited(base: Path, **config: object) -> dict[str, bytes]:
    """Files of the checkpoint with other values in config.json."""
    files = {p.name: p.read_bytes() for p in base.iterdir()}
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | config).encode()
    return files
