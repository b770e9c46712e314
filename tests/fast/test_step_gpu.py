"""On a GPU, with real 4-bit weights: every fused piece against float64, the whole step against peft + bitsandbytes."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3Config

from qlora_space.fast import ActivationPolicy, FastStep, attach, make_batch, policies
from qlora_space.fast.gradients import Gradients
from qlora_space.fast.linear import FusedLinear, adapter_copier
from qlora_space.fast.model import fast_gradients, plain_gradients, relative

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of 4 layers."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=False, max_position_embeddings=2048,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path


def load(folder: Path) -> PeftModel:
    from qlora_space.model import load_base

    return adapted(load_base(folder, 4, "cuda"))


def adapted(base: nn.Module) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(
        base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn_like(weight) * 0.02
    return model


@pytest.fixture
def model(folder: Path) -> PeftModel:
    return load(folder)


def rows(batch: int = 2, length: int = 256) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 4096, (batch, length))
    positions = torch.arange(length).expand(batch, -1)
    return {"input_ids": ids, "labels": ids.clone(), "position_ids": positions}


def attached(model: PeftModel) -> FastStep:
    step, text = attach(model)
    assert step is not None, text
    step.use_policy(ActivationPolicy.LAYER)
    return step


def grads_of(step: FastStep, inputs: dict[str, torch.Tensor], count: int = 1) -> list[torch.Tensor]:
    for p in step.fast.parameters:
        p.grad = None
    for _ in range(count):
        step(inputs, 500)
    return [p.grad.clone() for p in step.fast.parameters]  # type: ignore[union-attr]


@pytest.mark.parametrize("sizes", [(512,), (512, 128, 128), (1536, 1536)])
def test_fused_linears_are_as_near_to_float64_as_bf16_itself(sizes: tuple[int, ...]) -> None:
    """Output, dX, dA, dB: errors at most 1.2 times those of the plain bf16 formulas."""
    base = nn.ModuleDict({str(i): nn.Linear(512, n, bias=False) for i, n in enumerate(sizes)})
    holder = get_peft_model(base, LoraConfig(r=16, target_modules=r"\d"))  # type: ignore[arg-type]
    holder.to("cuda", torch.bfloat16)
    parts = [holder.base_model.model[str(i)] for i in range(len(sizes))]  # type: ignore[index]
    for part in parts:
        for p in (*part.lora_A.parameters(), *part.lora_B.parameters()):
            p.data = torch.randn_like(p, dtype=torch.float32) * 0.05
    fused = FusedLinear(parts, torch.bfloat16)
    Gradients([fused]).begin()
    adapter_copier([fused])()
    x, added = (
        torch.randn(1000, n, device="cuda", dtype=torch.bfloat16) for n in (512, sum(sizes))
    )
    dy = torch.randn_like(added)
    y, h = fused.forward(x, added=added)
    dx = fused.backward(dy, x, h)
    got = [y, dx, *(p.grad for p in fused.parameters)]
    errors = [
        [relative([a], [b]) for a, b in zip(r, _formula(fused, x, added, dy, torch.float64), strict=True)]
        for r in (got, _formula(fused, x, added, dy, torch.bfloat16))
    ]  # fmt: skip
    for mine, plain in zip(*errors, strict=True):
        assert mine <= 1.2 * plain


def _formula(fused: FusedLinear, x, added, dy, dtype: torch.dtype) -> list[torch.Tensor]:
    x, added, dy = (t.to(dtype) for t in (x, added, dy))
    weight = torch.cat([base.weight.to(dtype) for base in fused.bases])
    ab = [p.detach().to(dtype) for p in fused.parameters]
    a, b = ab[: len(fused.parts)], ab[len(fused.parts) :]
    ranks = zip(fused.scales, a, b, strict=True)
    y = x @ weight.t() + torch.cat([s * (x @ p.t()) @ q.t() for s, p, q in ranks], 1)
    parts = dy.split(fused.rows, 1)
    dx, das, dbs = dy @ weight, [], []
    for s, p, q, d in zip(fused.scales, a, b, parts, strict=True):
        dx = dx + s * (d @ q) @ p
        das.append(s * (d @ q).t() @ x)
        dbs.append(s * d.t() @ (x @ p.t()))
    return [y + added, dx, *das, *dbs]


def test_gradients_are_those_of_peft_and_bitsandbytes(model: PeftModel) -> None:
    inputs = rows()
    step = attached(model)
    batch = make_batch(inputs["input_ids"], inputs["labels"], inputs["position_ids"])
    loss, grads = fast_gradients(step.fast, batch)
    wanted_loss, wanted = plain_gradients(model, *inputs.values(), step.fast.parameters)
    assert relative([loss], [wanted_loss]) < 1e-3
    assert relative(grads, wanted) < 0.03


def test_a_captured_step_gives_what_the_first_ones_gave_and_sees_new_weights(model) -> None:
    step, inputs = attached(model), rows()
    eager = grads_of(step, inputs)
    step(inputs, 500)
    assert step._steps._graphs
    assert (
        relative(grads_of(step, inputs), eager) < 5e-3
    )  # the attention's backward adds in any order
    twice = grads_of(step, inputs, 2)
    assert relative([g / 2 for g in twice], eager) < 5e-3
    for p in step.fast.parameters:
        p.data.mul_(0.5)
    assert relative(grads_of(step, inputs), eager) > 0.05
    captured = grads_of(step, inputs)
    step.fast.policy = ActivationPolicy.ATTENTION
    grads_of(step, inputs)
    assert not step._steps._graphs  # what LAYER had captured is let go
    step.fast.policy = ActivationPolicy.LAYER
    grads_of(step, inputs, 2)
    step.release()
    assert not step._steps._graphs
    assert relative(grads_of(step, inputs), captured) < 5e-3


@pytest.mark.parametrize("policy", ActivationPolicy)
def test_every_policy_gives_the_same(model: PeftModel, policy: ActivationPolicy) -> None:
    step, inputs = attached(model), rows()
    step.fast.policy = ActivationPolicy.ALL
    wanted = grads_of(step, inputs)
    step.fast.policy = policy
    for _ in range(3):
        assert relative(grads_of(step, inputs), wanted) < 5e-3


@pytest.mark.parametrize("policy", [r for r in ActivationPolicy if r < ActivationPolicy.ALL])
def test_an_mlp_in_tiles_gives_the_same(
    model: PeftModel, policy: ActivationPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, inputs = attached(model), rows()
    step.fast.policy = ActivationPolicy.ALL
    wanted = grads_of(step, inputs)
    monkeypatch.setattr(policies, "_COMMON_TILE_TOKENS", 192)
    monkeypatch.setattr(policies, "_TILE_TOKENS", {})
    step.fast.policy = policy
    assert (
        relative(grads_of(step, inputs), wanted) < 0.01
    )  # products of other sizes round otherwise


def test_what_a_step_that_was_cut_off_had_fetched_is_not_used_again(model: PeftModel) -> None:
    step, inputs = attached(model), rows()
    step.fast.policy = ActivationPolicy.ALL
    wanted = grads_of(step, inputs)
    step.fast.policy = ActivationPolicy.OFFLOAD
    grads_of(step, rows())
    step.fast._offloader.fetch(0)
    assert relative(grads_of(step, inputs), wanted) < 5e-3


def test_packed_documents_give_what_they_give_one_by_one(model: PeftModel) -> None:
    step, lengths = attached(model), (100, 37, 200, 90)
    ids = torch.randint(0, 4096, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = {"input_ids": ids, "labels": ids.clone(), "position_ids": positions}
    wanted = grads_of(step, packed)
    for p in step.fast.parameters:
        p.grad = None
    for part, place in zip(ids.split(lengths, 1), positions.split(lengths, 1), strict=True):
        step({"input_ids": part, "labels": part.clone(), "position_ids": place}, 500)
    assert relative([p.grad for p in step.fast.parameters], wanted) < 0.01  # type: ignore[misc]


def test_a_saved_adapter_gives_the_same_logits_in_plain_peft(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    step = attached(model)
    optimizer = torch.optim.AdamW(step.fast.parameters, lr=1e-3, fused=True)
    for _ in range(5):
        step(rows(), 500)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(tmp_path))
    ids = rows()["input_ids"].cuda()
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids).logits
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cuda"}
    )
    fresh = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(fresh(input_ids=ids).logits, wanted)


def test_two_hundred_steps_fall_as_the_plain_ones_do(folder: Path) -> None:
    """The same start, rows and optimizer; the curves lie as near to each other as a plain one to its repetition."""
    data = [rows(2, 128) for _ in range(20)]
    curves = [_train(folder, data, is_fast=f) for f in (False, False, True)]
    noise = (curves[0] - curves[1]).abs().mean()
    assert curves[0][-1] < curves[0][0] - 0.5
    assert (curves[0] - curves[2]).abs().mean() < max(3 * noise, 0.01)


def _train(folder: Path, data: list[dict[str, torch.Tensor]], *, is_fast: bool) -> torch.Tensor:
    model = load(folder)
    step = attached(model) if is_fast else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    losses = []
    for i in range(200):
        inputs = data[i % len(data)]
        if step is None:
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**{k: v.cuda() for k, v in inputs.items()}, use_cache=False).loss
            loss.backward()
        else:
            loss = step(inputs, 2 * 127)
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses).float().cpu()


@pytest.mark.parametrize("policy", [r for r in ActivationPolicy if r < ActivationPolicy.WEIGHTS])
def test_a_base_in_host_memory_gives_the_same_bits_and_frees_the_gpu(
    folder: Path, policy: ActivationPolicy
) -> None:
    from qlora_space.model.by_blocks import load_on_host

    ids = torch.randint(0, 4096, (2, 256), generator=torch.Generator().manual_seed(0))
    batch = make_batch(ids, ids.clone(), torch.arange(256).expand(2, -1))
    found = []
    for base in (load(folder), adapted(load_on_host(folder, "cuda"))):
        fast = attached(base).fast
        fast.policy = policy
        fast_gradients(fast, batch)
        loss, grads = fast_gradients(fast, batch)
        found.append([loss.clone(), *grads])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_packed_weights_in_host_memory_take_none_of_the_gpus(folder: Path) -> None:
    from qlora_space.fast import move_to_host

    torch.cuda.empty_cache()
    model = load(folder)
    before = torch.cuda.memory_allocated()
    for block in model.get_base_model().model.layers:  # type: ignore[union-attr]
        move_to_host(block)  # type: ignore[arg-type]
    packed = sum(len(b.host_block.bytes) for b in model.get_base_model().model.layers)  # type: ignore
    assert before - torch.cuda.memory_allocated() >= packed > 0
    with torch.no_grad():
        assert model(torch.arange(9, device="cuda")[None]).logits.isfinite().all()
