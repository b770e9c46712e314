"""What trl does to our model and what we undo; the loss against a plain reference."""

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.fast import attach
from qlora_space.model import add_adapter, load_base
from qlora_space.model import base as base_module
from qlora_space.train.trainer import MicroBatches
from tests.train.conftest import Session


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad}


def test_adapters_on_a_quantized_base_stay_fp32(session: Session) -> None:
    assert dtypes(session.model) == {torch.float32}


def test_trl_still_casts_adapters_to_bf16_so_that_undoing_it_is_needed(
    session: Session, tmp_path
) -> None:
    """When this fails, trl has changed: the cast in RunTrainer.__init__ can go."""
    model = add_adapter(load_base(BASE_FOLDER, 4, "cpu"), session.plan)
    args = SFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=True,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, max_length=None,
    )  # fmt: skip
    SFTTrainer(
        model=model, args=args, train_dataset=session.rows, processing_class=session.tokenizer
    )  # type: ignore[arg-type]
    assert dtypes(model) == {torch.bfloat16}


def reference_loss(session: Session, rows: Dataset) -> float:
    """Each document alone, the plain logits, the mean over every trained token."""
    total, count = 0.0, 0
    session.model.eval()
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:  # type: ignore[index]
            ids = torch.tensor([row["input_ids"][start : start + length]])  # type: ignore[index]
            labels = torch.tensor(row["labels"][start : start + length])  # type: ignore[index]
            with torch.no_grad():
                logits = session.model(input_ids=ids).logits[0, :-1].float()
            kept = labels[1:] != -100
            losses = torch.nn.functional.cross_entropy(
                logits[kept], labels[1:][kept], reduction="sum"
            )
            total, count = total + losses.item(), count + int(kept.sum())
            start += length
    return total / count


def test_mean_loss_is_the_mean_over_trained_tokens(session: Session) -> None:
    held_out = Dataset.from_file(str(session.prepared.eval_file))
    wanted = reference_loss(session, held_out)
    assert (
        abs(session.trainer.mean_loss(held_out) / wanted - 1) < 0.01
    )  # bf16 sums in another order
    packed = session.rows.select(range(3))
    wanted = reference_loss(session, packed)
    assert abs(session.trainer.mean_loss(packed) / wanted - 1) < 0.01


def test_mean_loss_does_not_depend_on_the_batch_size(session: Session) -> None:
    held_out = Dataset.from_file(str(session.prepared.eval_file))
    trainer, before = session.trainer, session.trainer.micro_batch
    losses = []
    try:
        for trainer.micro_batch in (1, 100):
            losses.append(trainer.mean_loss(held_out))
    finally:
        trainer.micro_batch = before
    assert abs(losses[0] / losses[1] - 1) < 0.01


def test_mean_loss_holds_no_more_scores_of_eager_attention_than_the_plan_counts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = Dataset.from_file(str(session.prepared.eval_file))
    model, usual = session.model, session.trainer.mean_loss(held_out)
    before = model.config._attn_implementation
    longest = max(len(row["input_ids"]) for row in held_out)  # type: ignore[call-overload, index]
    monkeypatch.setattr(base_module, "EAGER_SCORES_AT_ONCE", 2 * longest**2)
    passes: list[tuple] = []
    hook = model.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda _, args, __: passes.append(tuple(args[0].shape))
    )
    try:
        model.get_base_model().set_attn_implementation("eager")
        assert session.trainer.mean_loss(held_out) == pytest.approx(usual, rel=0.01)
    finally:
        hook.remove()
        model.get_base_model().set_attn_implementation(before)
    padded = max(tokens for _, tokens in passes)
    assert max(rows * tokens**2 for rows, tokens in passes) <= 2 * padded**2
    assert len(passes) > 1


def test_a_training_step_counts_the_tokens_that_have_a_loss(session: Session) -> None:
    batch = session.trainer._collate([session.rows[0]])  # type: ignore[list-item]
    seen, trained = session.trainer.tokens_seen, session.trainer.trained_tokens
    labels = session.rows[0]["labels"]
    session.trainer.current_gradient_accumulation_steps = 1  # what the training loop sets first
    session.trainer.training_step(session.model, batch)
    assert session.trainer.tokens_seen - seen == batch["input_ids"].numel()
    assert session.trainer.trained_tokens - trained == sum(label != -100 for label in labels)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in session.model.parameters())
    session.model.zero_grad()


def test_the_fast_step_takes_the_place_of_loss_and_backward(session: Session) -> None:
    batch = session.trainer._collate([session.rows[0], session.rows[1]])  # type: ignore[list-item]
    trained = (batch["labels"] != -100).sum()
    session.trainer.current_gradient_accumulation_steps = 1
    fast, why = attach(session.model, on_cpu=True)
    assert fast, why
    found = []
    for step in (None, fast):
        session.trainer.fast_step = step
        loss = session.trainer.training_step(session.model, dict(batch), trained)
        parameters = [p for p in session.model.parameters() if p.requires_grad]
        grads = torch.cat([p.grad.flatten().clone() for p in parameters])  # type: ignore[union-attr]
        session.model.zero_grad()
        found.append((loss, grads))
    session.trainer.fast_step = None
    (plain_loss, plain), (fast_loss, mine) = found
    assert abs(fast_loss / plain_loss - 1) < 0.01
    assert (mine - plain).norm() < 0.05 * plain.norm()  # two computations in bf16


def test_portions_that_are_read_ahead_come_in_the_same_order(session: Session) -> None:
    trainer = session.trainer
    plain, ahead = (MicroBatches(trainer._rows, trainer._collate, session.plan, 3, 2) for _ in "ab")
    portions = iter(ahead)
    for i, wanted in zip(range(7), plain, strict=False):
        for _ in range(i % 3):
            ahead.read_ahead()
        got = next(portions)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)
