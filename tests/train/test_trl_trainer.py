"""What trl does to our model and what we undo; the loss against a plain reference."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.data import load_tokenizer, prepare
from qlora_space.data.order import rows_of_step
from qlora_space.fast import attach
from qlora_space.model import add_adapter, load_base
from qlora_space.train.batches import (
    MicroBatches,
    PackedCollator,
    TrainingRows,
    num_trained,
    rows_per_step,
)
from qlora_space.train.step import FusedStep, Step
from qlora_space.train.trl_trainer import make_trainer, prepare_for_training
from tests.live_bytes import LiveBytes
from tests.train.conftest import Session, demo_plan


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad}


def test_adapters_on_a_quantized_base_stay_fp32(session: Session) -> None:
    assert dtypes(session.model) == {torch.float32}


def test_trl_still_casts_adapters_to_bf16_so_that_undoing_it_is_needed(
    session: Session, tmp_path
) -> None:
    """When this fails, trl has changed: the cast in make_trainer can go."""
    model = add_adapter(load_base(BASE_FOLDER, 4, "cpu"), session.plan)
    args = SFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=True,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, max_length=None,
    )  # fmt: skip
    SFTTrainer(
        model=model, args=args, train_dataset=session.rows.rows, processing_class=session.tokenizer
    )  # type: ignore[arg-type]
    assert dtypes(model) == {torch.bfloat16}


def kept_bytes(bits: int, folder: Path) -> int:
    """Of a forward pass of 512 tokens with checkpointing, until backward."""
    plan = demo_plan(bits).model_copy(update={"gradient_checkpointing": True})
    prepared, tokenizer = prepare(plan, folder / "data"), load_tokenizer(BASE_FOLDER)
    model = add_adapter(load_base(BASE_FOLDER, bits, "cpu"), plan)
    rows = TrainingRows(Dataset.from_file(str(prepared.train_file)), PackedCollator(pad_token_id=0))
    trainer = make_trainer(model, tokenizer, plan, rows, folder)
    prepare_for_training(trainer, plan, 2)
    model.train()
    with LiveBytes() as live:
        hidden = model.get_base_model().model(input_ids=torch.arange(512)[None] % 200)[0]
        kept = live.now
    hidden.square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    return kept


def test_checkpointing_keeps_no_more_of_8_bit_linears_than_of_others(tmp_path: Path) -> None:
    """bitsandbytes keeps their inputs out of reach of torch's default checkpointing."""
    assert kept_bytes(8, tmp_path / "8") < 1.3 * kept_bytes(4, tmp_path / "4")


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


def test_held_out_loss_is_the_mean_over_trained_tokens(session: Session) -> None:
    held_out = Dataset.from_file(str(session.prepared.eval_file))
    wanted = reference_loss(session, held_out)
    assert (
        abs(session.evaluator().losses(held_out).mean / wanted - 1) < 0.01
    )  # bf16 sums in another order
    packed = session.rows.rows.select(range(3))
    wanted = reference_loss(session, packed)
    assert abs(session.evaluator().losses(packed).mean / wanted - 1) < 0.01


def test_held_out_loss_does_not_depend_on_the_batch_size(session: Session) -> None:
    held_out = Dataset.from_file(str(session.prepared.eval_file))
    state, before = session.state, session.state.progress
    losses = []
    try:
        for rows_at_once in (1, 100):
            state.progress = before.model_copy(update={"micro_batch": rows_at_once})
            losses.append(session.evaluator().losses(held_out).mean)
    finally:
        state.progress = before
    assert abs(losses[0] / losses[1] - 1) < 0.01


def test_held_out_loss_holds_no_more_scores_of_eager_attention_than_the_plan_counts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = Dataset.from_file(str(session.prepared.eval_file))
    model, usual = session.model, session.evaluator().losses(held_out).mean
    before = model.config._attn_implementation
    longest = max(len(row["input_ids"]) for row in held_out)  # type: ignore[call-overload, index]
    monkeypatch.setattr("qlora_space.lowbit.architecture.EAGER_SCORES_AT_ONCE", 2 * longest**2)
    passes: list[tuple] = []
    hook = model.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda _, args, __: passes.append(tuple(args[0].shape))
    )
    try:
        model.get_base_model().set_attn_implementation("eager")
        assert session.evaluator().losses(held_out).mean == pytest.approx(usual, rel=0.01)
    finally:
        hook.remove()
        model.get_base_model().set_attn_implementation(before)
    padded = max(tokens for _, tokens in passes)
    assert max(rows * tokens**2 for rows, tokens in passes) <= 2 * padded**2
    assert len(passes) > 1


def gradients_of(session: Session, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    batch = session.rows.first(2)
    loss = step.finish(step.add_gradients(batch, num_trained(batch), 1))
    parameters = [p for p in session.model.parameters() if p.requires_grad]
    grads = torch.cat([p.grad.flatten().clone() for p in parameters])  # type: ignore[union-attr]
    session.model.zero_grad()
    return loss, grads


def test_the_fused_step_computes_the_loss_and_gradients_of_the_plain_one(session: Session) -> None:
    fast, why = attach(session.model, on_cpu=True)
    assert fast, why
    plain_loss, plain = gradients_of(session, session.step)
    fast_loss, mine = gradients_of(session, FusedStep(fast))
    assert abs(fast_loss / plain_loss - 1) < 0.01
    assert (mine - plain).norm() < 0.05 * plain.norm()  # two computations in bf16


def test_the_plain_step_leaves_no_metrics_of_trl_behind(session: Session) -> None:
    """They would grow with every step."""
    gradients_of(session, session.step)
    assert not any(session.trainer._metrics["train"].values())


def test_prefetched_micro_batches_come_in_the_same_order(session: Session) -> None:
    plain, ahead = (MicroBatches(session.rows, session.plan, 3, 2) for _ in "ab")
    for i in range(3):
        for _ in range(i % 3):
            ahead.prefetch()
        for wanted, got in zip(plain.next_step(), ahead.next_step(), strict=True):
            assert got.rows == wanted.rows
            assert all(torch.equal(got.inputs[name], wanted.inputs[name]) for name in wanted.inputs)


def test_the_micro_batches_of_a_step_have_its_rows_whatever_their_size(session: Session) -> None:
    size = rows_per_step(session.plan)
    wanted = [rows_of_step(step, size, len(session.rows), session.plan.seed) for step in (0, 1)]
    for rows_at_once in (1, 2, size):
        batches = MicroBatches(session.rows, session.plan, 0, rows_at_once)
        for order in wanted:
            got = [
                ids for batch in batches.next_step() for ids in batch.inputs["input_ids"].tolist()
            ]
            rows = session.rows.batch(order.tolist()).inputs["input_ids"].tolist()
            assert [trimmed(ids) for ids in got] == [trimmed(ids) for ids in rows]


def trimmed(ids: list[int]) -> list[int]:
    """Without padding, which depends on the longest row of a micro-batch."""
    last = max(i for i, token in enumerate(ids) if token != ids[-1])
    return ids[: last + 1]
