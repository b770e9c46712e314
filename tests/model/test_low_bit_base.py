"""A plan's packed base: calibrated on the user's rows, measured, stored on disk, the same again from there."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from qlora_space.core.atomic import whole_folder
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import DiskFull, ModelError
from qlora_space.core.facts import DatasetFacts, Hardware, TokenLengths
from qlora_space.core.options import Format
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Prepared, load_tokenizer
from qlora_space.data.prepared import Document, Manifest, write_prepared
from qlora_space.hub import model_facts, publish_adapter
from qlora_space.lowbit import load_packed, load_quantized
from qlora_space.lowbit.evaluate import Evaluation, ReferenceEvaluator
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.model import calibration_text as calibration
from qlora_space.model import low_bit_base as base_module
from qlora_space.model import save_adapter
from qlora_space.model.calibration_text import calibration_for
from qlora_space.model.gate import gate_of
from qlora_space.model.low_bit_base import prepare_low_bit_base
from qlora_space.model.measure_base import measure_base
from qlora_space.plan import Plan, resolve
from qlora_space.plan.memory import packed_base_gib
from qlora_space.runs import known_quality
from tests.fake_hub import ALICE, FakeHub

LENGTHS = TokenLengths(p50=40, p95=40, max=40, mean=40, truncated_fraction=0, trained_fraction=1)
CPU = Hardware(
    name="CPU, 2 cores", device="cpu", memory_gib=16, free_gib=12, cpu_cores=2, disk_free_gib=50
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(BASE_FOLDER)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CALIBRATION_TOKENS", {"cpu": 512})
    monkeypatch.setattr(calibration, "_HELDOUT_TOKENS", {"cpu": 128})


def rows(start: int, count: int) -> Iterator[list[Document]]:
    for i in range(count):
        ids = np.full(40, start + i % 20, np.int32)
        yield [Document(ids, ids)]


def prepared(folder: Path, train: int = 30, held: int = 5) -> Prepared:
    manifest = Manifest(
        key="k", dataset_sha="d", tokenizer_sha256="t", format=Format.TEXT, columns={},
        max_length=64, rows_read=train, rows_used=train, rows_dropped={}, rows_truncated=0,
        eval_rows=held, tokens=40 * train, trained_tokens=40 * train, packed_rows=train,
        waste_fraction=0, stop_token_ids=(),
    )  # fmt: skip
    return write_prepared(folder, manifest, rows(100, train), rows(300, held), [])


def plan(**asked: Any) -> Plan:
    data = DatasetFacts(
        id="rows", sha="1", format="text", num_rows=30, is_exact=True, lengths=LENGTHS
    )
    usual = {"bits": 2, "group_size": 32, "r": 4, "max_length": 64}
    request = TrainingRequest.model_validate(usual | asked)
    return resolve(request, model_facts("demo", None, None), data, CPU)


def test_calibration_is_half_the_users_rows_and_what_is_measured_on_is_held_out(
    tmp_path: Path, tokenizer: Any
) -> None:
    texts = calibration_for(
        prepared(tmp_path / "p"), tokenizer, is_demo=True, longest=64, device="cpu"
    )
    windows = texts.windows
    assert texts.heldout == "your held-out rows"
    assert windows.num_calibration == 512 // 64
    own = ((windows.ids >= 100) & (windows.ids < 120)).all(1)
    assert own[: windows.num_calibration].sum() == windows.num_calibration // 2
    held = windows.ids[windows.num_calibration :]
    assert ((held >= 300) & (held < 320) | ~windows.is_text[windows.num_calibration :]).all()
    assert len(held) == 2


def test_without_held_out_rows_the_last_general_text_is_measured_on(
    tmp_path: Path, tokenizer: Any
) -> None:
    for data in (None, prepared(tmp_path / "p", held=0)):
        texts = calibration_for(data, tokenizer, is_demo=True, longest=64, device="cpu")
        assert texts.heldout == "general text"
        windows = texts.windows
        held = {tuple(r) for r in windows.ids[windows.num_calibration :].tolist()}
        assert held
        assert not held & {tuple(r) for r in windows.ids[: windows.num_calibration].tolist()}


def test_general_text_for_other_bases_comes_with_python(tokenizer: Any) -> None:
    texts = calibration_for(None, tokenizer, is_demo=False, longest=64, device="cpu")
    assert "assert" in tokenizer.decode(texts.windows.ids[0].tolist())


def making(folder: Path, tokenizer: Any, **asked: Any) -> Any:
    """A base of that plan in that folder, the folder, and what was told of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "CALIBRATION_TOKENS", {"cpu": 512})
        patch.setattr(calibration, "_HELDOUT_TOKENS", {"cpu": 128})
        said: list[tuple[str, int, int]] = []
        first = prepare_low_bit_base(
            plan(**asked), BASE_FOLDER, prepared(folder / "p"), tokenizer, folder / "quantized",
            lambda *step: said.append(step),
        )  # fmt: skip
        return first, folder, said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Any:
    return making(tmp_path_factory.mktemp("home"), tokenizer)


@pytest.fixture(scope="module")
def by_weights(made: Any, tokenizer: Any) -> Any:
    """Beside it, without calibration of the codes."""
    return making(made[1], tokenizer, calibrated=False)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(100, 140)[None]).logits


def test_a_base_is_made_block_by_block_and_measured(made: Any) -> None:
    first, folder, said = made
    assert [done for _, done, _ in said] == list(range(said[-1][2] + 1))
    assert [point.name for point in first.quality.points] == ["16 bit", "quantized", "start"]
    whole, quantized, start = first.quality.points
    assert (whole.kl, whole.top1) == (0, 1)
    assert start.kl < quantized.kl
    assert first.quality in known_quality(folder / "quantized", first.quality.base_sha)
    layers = [m for m in first.model.modules() if isinstance(m, LowBitLinear)]
    assert len(layers) == 7 * first.model.config.num_hidden_layers
    adapters = [p for n, p in first.model.named_parameters() if "lora_" in n]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in adapters)


def test_the_second_time_it_comes_from_disk_with_the_same_logits(made: Any, tokenizer: Any) -> None:
    first, folder, _ = made
    said: list[str] = []
    again = prepare_low_bit_base(
        plan(), folder / "no such base", prepared(folder / "q"), tokenizer, folder / "quantized",
        lambda name, *_: said.append(name),
    )  # fmt: skip
    assert said == ["model"]
    assert again.quality == first.quality
    assert torch.equal(logits(again.model), logits(first.model))


def test_calibrated_it_starts_no_farther_from_the_original(made: Any, by_weights: Any) -> None:
    """Rows of random tokens are no good calibration."""
    ours, plain = (found[0].quality.points for found in (made, by_weights))
    assert ours[0] == plain[0]
    assert ours[-1].kl < 1.02 * plain[-1].kl  # hooks round otherwise than peft
    assert made[0].packed != by_weights[0].packed


def test_other_text_or_another_init_is_made_anew_on_the_same_base_packed_by_its_weights(
    by_weights: Any, tokenizer: Any
) -> None:
    first, folder, _ = by_weights
    rest = (folder / "quantized", lambda *_: None)
    zero = prepare_low_bit_base(
        plan(init="zero", calibrated=False), BASE_FOLDER, prepared(folder / "p"), tokenizer, *rest
    )
    assert zero.packed == first.packed
    assert [point.name for point in zero.quality.points] == ["16 bit", "quantized"]
    with zero.model.disable_adapter():
        base = logits(zero.model)
    assert torch.equal(logits(zero.model), base)
    with first.model.disable_adapter():
        assert torch.equal(logits(first.model), base)


def test_a_scaled_adapter_is_initialized_as_the_same_repair(made: Any, tokenizer: Any) -> None:
    first, folder, _ = made
    scaled = prepare_low_bit_base(
        plan(lora_alpha=16), BASE_FOLDER, prepared(folder / "p"), tokenizer,
        folder / "quantized", lambda *_: None,
    )  # fmt: skip
    torch.testing.assert_close(logits(scaled.model), logits(first.model), atol=0.05, rtol=0.05)


def test_the_lines_of_a_card_load_the_base_that_was_trained_on(by_weights: Any) -> None:
    first, _, _ = by_weights
    base = load_quantized(BASE_FOLDER, bits=2, group_size=32, device="cpu")
    with first.model.disable_adapter():
        assert torch.equal(logits(base), logits(first.model))


def test_a_repair_that_makes_the_model_worse_is_left_out(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kl = iter((0.3, 0.5))
    monkeypatch.setattr(
        ReferenceEvaluator,
        "evaluate",
        lambda _, model: Evaluation(perplexity=9, kl=next(kl), top1=0.7),
    )
    first = prepare_low_bit_base(
        plan(calibrated=False),
        BASE_FOLDER,
        prepared(tmp_path / "p"),
        tokenizer,
        tmp_path / "q",
        lambda *_: None,
    )
    assert [point.name for point in first.quality.points] == ["16 bit", "quantized"]
    assert "eora repair made it no better and is left out" in gate_of(first.quality).why
    with first.model.disable_adapter():
        base = logits(first.model)
    assert torch.equal(logits(first.model), base)


def within(mean_bits: float) -> float:
    """The size of the base that is packed so."""
    return packed_base_gib(model_facts("demo", None, None), mean_bits, group_size=32) * 1.0001


@pytest.fixture(scope="module")
def own(made: Any, tokenizer: Any) -> Any:
    """Mixed bits that a size of the base leads to."""
    _, folder, _ = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "CALIBRATION_TOKENS", {"cpu": 512})
        patch.setattr(calibration, "_HELDOUT_TOKENS", {"cpu": 128})
        return prepare_low_bit_base(
            plan(base_gib=within(2.5)), BASE_FOLDER, prepared(folder / "p"), tokenizer,
            folder / "quantized", lambda *_: None,
        )  # fmt: skip


def test_a_mixed_base_has_other_bits_from_layer_to_layer_and_the_mean_that_was_asked_for(
    own: Any, made: Any, tokenizer: Any
) -> None:
    layers = [m for m in own.model.modules() if isinstance(m, LowBitLinear)]
    sizes = [m.in_features * m.out_features for m in layers]
    mean = sum(m.grid.bits * size for m, size in zip(layers, sizes, strict=True)) / sum(sizes)
    assert {m.grid.bits for m in layers} >= {2, 3}
    assert 2.5 - max(sizes) / sum(sizes) < mean <= 2.5
    assert own.quality.bits_per_weight == pytest.approx(mean + (16 + mean) / 32, abs=1e-3)
    assert own.quality.points[1].kl < made[0].quality.points[1].kl
    assert own.packed != made[0].packed
    again = prepare_low_bit_base(
        plan(mean_bits=2.5), BASE_FOLDER, prepared(made[1] / "p"), tokenizer,
        made[1] / "quantized", lambda *_: None,
    )  # fmt: skip
    assert torch.equal(logits(again.model), logits(own.model))


def test_a_packed_base_is_within_the_size_that_was_asked_for_and_nearly_as_large(own: Any) -> None:
    tensors = load_file(own.packed / "model.safetensors").values()
    taken = sum(t.numel() * t.element_size() for t in tensors) / 2**30
    assert 0.98 * within(2.5) < taken <= within(2.5)


def test_a_calibrated_base_is_another_one_in_another_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its codes are; a base packed by its weights has the same codes everywhere."""
    texts: Any = SimpleNamespace(sha256="0" * 64)
    folders = []
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(base_module, "compute_dtype", lambda _, dtype=dtype: dtype)
        made = (plan(), plan(calibrated=False))
        folders.append([base_module.packed_folder(p, texts, tmp_path) for p in made])
    (rounded, plain), (rounded_in_fp32, plain_in_fp32) = folders
    assert rounded != rounded_in_fp32
    assert plain == plain_in_fp32


def test_a_calibrated_base_is_named_by_all_that_its_codes_depend_on(tmp_path: Path) -> None:
    texts: list[Any] = [SimpleNamespace(sha256=digit * 64) for digit in "01"]
    asked = ({}, {"init": "zero"}, {"init": "srr"}, {"r": 8}, {"mean_bits": 2.5}, {"bits": 3})
    made = [
        base_module.packed_folder(plan(**one), text, tmp_path) for one in asked for text in texts
    ]
    assert len({*made}) == len(made)


def test_a_packed_base_that_was_published_comes_back_with_the_same_logits(
    own: Any, hub: FakeHub, tmp_path: Path
) -> None:
    save_adapter(own.model, tmp_path / "adapter")
    publish_adapter(
        tmp_path / "adapter", "# card", "alice/mixed", True, ALICE, "1" * 32,
        packed_base=own.packed,
    )  # fmt: skip
    repo = hub.repo("model", "alice/mixed")
    assert {"base/config.json", "base/model.safetensors"} <= set(repo.files)
    assert str(BASE_FOLDER.parent).encode() not in repo.files["base/config.json"]
    base = load_packed("alice/mixed", device="cpu", token=ALICE)
    theirs = PeftModel.from_pretrained(base, "alice/mixed", token=ALICE)
    assert torch.equal(logits(theirs), logits(own.model))
    with theirs.disable_adapter(), own.model.disable_adapter():
        assert torch.equal(logits(theirs), logits(own.model))


def test_a_repository_without_a_packed_base_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no base/config\.json"):
        load_packed(str(tmp_path), device="cpu")


def test_four_bits_without_a_repair_are_measured_as_they_are_trained(tmp_path: Path) -> None:
    """NF4, which bitsandbytes packs: no packed base of ours is made."""
    facts = model_facts("demo", None, None)
    quality = measure_base(TrainingRequest(bits=4), facts, CPU, tmp_path, None)
    assert [point.name for point in quality.points] == ["16 bit", "quantized"]
    assert quality.bits_per_weight == 4.127
    assert 0 < quality.points[1].kl < 0.1
    assert not list(tmp_path.rglob("*.safetensors"))
    assert known_quality(tmp_path, facts.sha) == [quality]
    assert measure_base(TrainingRequest(bits=4), facts, CPU, tmp_path, None) == quality


def test_a_disk_that_refuses_a_packed_base_is_named(tmp_path: Path) -> None:
    """safetensors writes past Python, and its error is no OSError."""
    folder = tmp_path / "packed"
    with (
        pytest.raises(DiskFull, match=r"The base could not be written: .*missing"),
        whole_folder(folder, "The base") as part,
    ):
        save_file({"w": torch.zeros(4)}, part / "missing" / "base.safetensors")
    assert not list(tmp_path.iterdir())
