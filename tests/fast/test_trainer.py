"""A real SFTTrainer over the demo's base: with the fast step it logs the same losses, norms and rates, step by step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import SFTConfig, SFTTrainer

from qlora_space.core.demo import BASE_FOLDER, TRAIN_FILE
from qlora_space.fast import Unsupported, attach, packed_inputs, speed_up

STEPS = 4
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def some_rows(count: int = 24) -> Dataset:
    """Conversations whose answers alone are trained."""
    lines = [json.loads(line)["messages"] for line in TRAIN_FILE.read_text().splitlines()[:count]]
    return Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in lines])


def some_texts(count: int = 24) -> Dataset:
    lines = [json.loads(line)["messages"] for line in TRAIN_FILE.read_text().splitlines()[:count]]
    return Dataset.from_list([{"text": " ".join(m["content"] for m in ms)} for ms in lines])


def sft_trainer(folder: Path, rows: Dataset, kind: type = SFTTrainer, **changed: Any) -> SFTTrainer:
    """Two micro-batches of three rows an update; gradients are clipped, the rate goes up and down."""
    torch.manual_seed(0)
    options = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": STEPS,
        "learning_rate": 3e-3, "warmup_steps": 2, "lr_scheduler_type": "cosine", "max_grad_norm": 0.5,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False,
        "disable_tqdm": True, "gradient_checkpointing": False, "max_length": 128, "seed": 1,
    }  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32)
    return kind(
        model=get_peft_model(base, LORA),
        args=SFTConfig(output_dir=str(folder), **options | changed),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(BASE_FOLDER),
    )


def logged(trainer: Trainer) -> list[list[float]]:
    """(loss, gradient norm, learning rate) of each step."""
    trainer.train()
    names = ("loss", "grad_norm", "learning_rate")
    return [[line[n] for n in names] for line in trainer.state.log_history if "loss" in line]


def weights_of(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach() for p in trainer.model.parameters() if p.requires_grad]  # type: ignore


def assert_same(fast: Trainer, plain: Trainer) -> None:
    found, wanted = logged(fast), logged(plain)
    assert len(wanted) == STEPS
    assert wanted[0][1] > plain.args.max_grad_norm  # or nothing would be clipped
    for mine, others in zip(found, wanted, strict=True):
        assert mine == pytest.approx(others, rel=1e-5, abs=1e-5)
    for a, b in zip(weights_of(fast), weights_of(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="padded"),
        pytest.param({"padding_free": True, "max_length": None}, id="padding-free"),
        pytest.param({"packing": True}, id="packed"),
        pytest.param({"packing": True, "packing_strategy": "wrapped"}, id="wrapped"),
        pytest.param({"gradient_checkpointing": True, "pad_to_multiple_of": 16}, id="checkpointed"),
    ],
)
def test_the_fast_step_trains_as_the_plain_one(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = some_texts() if options.get("packing_strategy") else some_rows()
    fast, plain = (sft_trainer(tmp_path / n, rows, **options) for n in ("fast", "plain"))
    step, text = speed_up(fast, on_cpu=True)
    assert step is not None, text
    calls = count_calls(fast, step)
    assert_same(fast, plain)
    assert len(calls) >= 2 * STEPS - 1  # packed, the last update of the epoch has one micro-batch
    assert not any(calls)


def count_calls(trainer: Trainer, step: Any) -> list[bool]:
    """For each micro-batch from now on, whether it took the plain step."""
    calls, owner = [], trainer.training_step.__self__  # type: ignore[attr-defined]
    plain_step = owner._plain_step

    class Counted(type(step)):
        def __call__(self, *args: Any) -> torch.Tensor:
            calls.append(False)
            return super().__call__(*args)

    def counted_plain_step(*args: Any) -> torch.Tensor:
        calls.append(True)
        return plain_step(*args)

    step.__class__, owner._plain_step = Counted, counted_plain_step
    return calls


def test_a_plain_trainer_is_sped_up_too_also_where_it_counts_no_tokens(tmp_path: Path) -> None:
    """Without num_items_in_batch the loss is the mean over micro-batches."""
    prepared = sft_trainer(tmp_path / "rows", some_rows()).train_dataset
    collate = sft_trainer(tmp_path / "rows", some_rows()).data_collator
    trainers = []
    for name in ("fast", "plain"):
        like = sft_trainer(tmp_path / name, some_rows())
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32)
        trainer = Trainer(get_peft_model(base, LORA), like.args, collate, prepared)
        trainer.model_accepts_loss_kwargs = False
        trainers.append(trainer)
    assert speed_up(trainers[0], on_cpu=True).step is not None
    assert_same(*trainers)


def test_batches_that_only_the_plain_step_takes_add_to_the_same_update(tmp_path: Path) -> None:
    fast, plain = (sft_trainer(tmp_path / n, some_rows()) for n in ("fast", "plain"))
    step, text = speed_up(fast, on_cpu=True)
    assert step is not None, text
    calls = count_calls(fast, step)
    original = fast.training_step

    def with_a_float_mask(model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        if with_a_float_mask.count % 3 == 0:  # first and second halves of updates
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with_a_float_mask.count += 1
        return original(model, inputs, *rest)

    with_a_float_mask.count = 0
    fast.training_step = with_a_float_mask  # type: ignore[method-assign]
    forward = fast.model.get_base_model().model.forward
    fast.model.get_base_model().model.forward = lambda *a, token_type_ids=None, **k: forward(
        *a, **k
    )
    assert_same(fast, plain)
    assert calls == [True, False, False, True, False, False, True, False]


def test_evaluation_and_the_steps_after_detach_are_the_plain_ones(tmp_path: Path) -> None:
    fast, plain = (sft_trainer(tmp_path / n, some_rows()) for n in ("fast", "plain"))
    step, text = speed_up(fast, on_cpu=True)
    assert step is not None, text
    released = []
    step.release = lambda: released.append(True)  # type: ignore[method-assign]
    wanted = plain.evaluate(plain.train_dataset)["eval_loss"]
    assert fast.evaluate(fast.train_dataset)["eval_loss"] == wanted
    assert released
    step.detach()
    assert logged(fast) == logged(plain)


def test_a_checkpoint_is_resumed_with_the_fast_step(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2}
    whole, broken = (sft_trainer(tmp_path / n, some_rows(), **saved) for n in ("whole", "broken"))
    assert speed_up(whole, on_cpu=True).step is not None
    wanted = logged(whole)
    assert speed_up(broken, on_cpu=True).step is not None
    broken.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    found = [line["loss"] for line in broken.state.log_history if "loss" in line]
    assert found == pytest.approx([loss for loss, _, _ in wanted], rel=1e-6)


def test_an_adapter_that_trl_rounded_to_bf16_becomes_fp32(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, some_rows())
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    trainer.args.fp16 = True
    assert speed_up(trainer, on_cpu=True).step is None
    assert {w.dtype for w in weights_of(trainer)} == {torch.bfloat16}
    trainer.args.fp16 = False
    assert speed_up(trainer, on_cpu=False).step is None  # there is no GPU, or it is not in bf16
    assert {w.dtype for w in weights_of(trainer)} == {torch.bfloat16}
    assert speed_up(trainer, on_cpu=True).step is not None
    assert {w.dtype for w in weights_of(trainer)} == {torch.float32}


class OwnLoss(SFTTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (OwnLoss, {}, "OwnLoss has a loss or a step of its own"),
        (SFTTrainer, {"loss_type": "dft"}, "not the mean over tokens"),
        (SFTTrainer, {"label_smoothing_factor": 0.1}, "labels are smoothed"),
        (SFTTrainer, {"neftune_noise_alpha": 5.0}, "NEFTune"),
    ],
)
def test_a_trainer_that_is_not_supported_is_left_alone(
    tmp_path: Path, kind: type, options: dict[str, Any], reason: str
) -> None:
    trainer = sft_trainer(tmp_path, some_rows(), kind, **options)
    step, text = speed_up(trainer, on_cpu=True)
    assert step is None
    assert text.startswith("The plain path is used: ")
    assert reason in text
    assert "training_step" not in vars(trainer)


IDS = torch.arange(3, 11)[None]


def test_padding_is_told_from_documents_on_either_side() -> None:
    ids, mask = (
        IDS.expand(2, -1),
        torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]]),
    )
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 3] = -100  # which padding would predict
    packed = packed_inputs({"input_ids": ids, "labels": labels, "attention_mask": mask})
    assert packed["position_ids"].tolist() == [[0, 0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 0]]


def test_left_padding_gives_the_loss_of_the_plain_step(tmp_path: Path) -> None:
    model = sft_trainer(tmp_path, some_rows()).model
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    labels = IDS.masked_fill(mask == 0, -100)
    labels[0, 3] = -100
    inputs = {"input_ids": IDS, "labels": labels, "attention_mask": mask}
    step, text = attach(model, on_cpu=True)  # type: ignore[arg-type]
    assert step is not None, text
    wanted = model(**inputs, use_cache=False).loss  # type: ignore[operator]
    assert step(packed_inputs(inputs), 4).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"pixel_values": torch.zeros(1)}, "the batch has pixel_values"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]])}, "holes"),
        ({"attention_mask": torch.zeros(1, 1, 8, 8)}, "not one of 0 and 1"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])}, "first one of its document"),
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}, "first one of its document"),
        ({"position_ids": torch.arange(1, 9)[None]}, "do not start at 0"),
        (
            {"attention_mask": torch.ones(1, 8), "position_ids": torch.tensor([[0, 1, 2, 3] * 2])},
            "start again under an attention mask",
        ),
        ({"labels": torch.full((1, 8), -100)}, "no token is trained"),
    ],
)
def test_what_only_the_plain_step_understands_is_named(
    changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        packed_inputs({"input_ids": IDS, "labels": IDS} | changed)


def test_a_batch_without_a_mask_is_one_document_a_row() -> None:
    packed = packed_inputs({"input_ids": IDS.expand(2, -1), "labels": IDS.expand(2, -1)})
    assert packed["position_ids"].tolist() == [list(range(8))] * 2
