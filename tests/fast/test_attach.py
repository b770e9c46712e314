"""attach() and detach(): the model is as it was, whatever happened in between, but for the adapter's weights."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from qlora_space.fast import ActivationPolicy, FastStep, attach
from qlora_space.fast.from_peft import LARGEST_RANK
from qlora_space.fast.limits import MODEL_TYPES, OFFLOAD_TILE_TOKENS
from qlora_space.fast.policies import tile_tokens
from tests.fast.test_host_memory import packed_model
from tests.fast.test_mixture import MIXTURES
from tests.fast.test_model import EXTRA, TINY, tiny


def rows(vocabulary: int = 320) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, vocabulary, (2, 40), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(40).expand(2, -1)}


def attached(model: PeftModel) -> FastStep:
    step, text = attach(model, on_cpu=True)
    assert step is not None, text
    return step


def facts_of(model: PeftModel) -> Iterator[tuple]:
    """Modules, then weights and buffers with where and how they lie; values apart."""
    for name, module in model.named_modules():
        yield name, id(module), type(module), module.training, len(module._forward_hooks)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        layout = (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        yield name, id(tensor), layout, tensor.requires_grad, tensor.grad


def outputs_of(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=rows(128)["input_ids"], use_cache=False).logits


@pytest.mark.parametrize("policy", [ActivationPolicy.LAYER, ActivationPolicy.WEIGHTS])
@pytest.mark.parametrize("on_host", [False, True])
def test_after_detach_the_model_is_as_it_was_bit_for_bit(
    policy: ActivationPolicy, on_host: bool
) -> None:
    """Over real NF4 weights; FP8 and every kind of cached weight were in use."""
    model = packed_model(on_host=on_host)
    before, weights = list(facts_of(model)), {k: v.clone() for k, v in model.state_dict().items()}
    outputs = outputs_of(model)
    step = attached(model)
    step.use_policy(policy)
    step.switch_fp8(is_used=True)
    step(rows(128), 78)
    assert all(p.grad is not None for p in step.fast.parameters)
    step.detach()
    assert list(facts_of(model)) == before
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(outputs_of(model), outputs)


def test_the_adapter_keeps_what_it_learned_and_autograd_works_again() -> None:
    model = tiny("qwen3", torch.float32)
    step = attached(model)
    optimizer = torch.optim.SGD(step.fast.parameters, lr=0.1)
    step(rows(), 78)
    optimizer.step()
    learned = [p.detach().clone() for p in step.fast.parameters]
    parameters = step.fast.parameters
    step.detach()
    assert all(torch.equal(p, w) for p, w in zip(parameters, learned, strict=True))
    model(**rows(), use_cache=False).loss.backward()
    grads = [p.grad.clone() for p in parameters]
    model.zero_grad()
    again = attached(model)
    again(rows(), 78)
    for p, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-6)


def test_a_detached_step_says_so_and_may_be_detached_again() -> None:
    step = attached(tiny("llama"))
    step.detach()
    step.detach()
    step.release()
    assert not step.is_attached
    for call in (lambda: step(rows(), 78), lambda: step.fast, lambda: step.is_fp8):
        with pytest.raises(RuntimeError, match="detached"):
            call()


def test_an_attach_that_fails_leaves_no_gradients_and_no_other_weights() -> None:
    model = tiny("llama")
    attention = model.get_base_model().model.layers[0].self_attn
    original = attention.forward
    attention.forward = lambda *_, **__: 1 / 0  # the plain way breaks after the fast one
    before = list(facts_of(model))
    assert attach(model, on_cpu=True).step is None
    attention.forward = original
    assert list(facts_of(model)) == before


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "is trained, too"),
        ({"use_dora": True}, "not one plain LoRA adapter"),
        ({"r": LARGEST_RANK + 1}, f"r is above {LARGEST_RANK}"),
        ({"target_modules": ["q_proj", "v_proj"]}, "o_proj has no adapter"),
        ({"lora_bias": True}, "has a bias"),
    ],
)
def test_what_stands_in_the_way_is_named(lora: dict, reason: str) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**TINY))
    lora = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    step, text = attach(get_peft_model(base, LoraConfig(**lora)), on_cpu=True)
    assert step is None
    assert text.startswith("The plain path is used: ")
    assert reason in text


def test_an_adapter_in_16_bits_is_not_supported() -> None:
    model = tiny("llama", torch.float32)
    model.get_submodule("base_model.model.model.layers.1.mlp.up_proj.lora_A").to(torch.bfloat16)
    assert "the adapter of up_proj is not in fp32" in attach(model, on_cpu=True).text


def test_what_a_planner_reads_is_what_the_step_goes_by() -> None:
    assert set(EXTRA) | MIXTURES == MODEL_TYPES
    assert tile_tokens(ActivationPolicy.OFFLOAD, 10**6) == OFFLOAD_TILE_TOKENS


def test_the_limits_are_read_without_torch_and_every_name_is_there() -> None:
    code = (
        "import sys; import qlora_space.fast as fast; from qlora_space.fast.limits import MODEL_TYPES;"
        "assert not {'torch', 'peft', 'trl', 'transformers'} & set(sys.modules);"
        "import qlora_space.fast.step, qlora_space.fast.trainer, qlora_space.fast.warming;"
        "from qlora_space.fast import *;"
        "assert all(callable(getattr(fast, name)) for name in fast.__all__);"
        "assert set(fast.__all__) == set(fast._MODULE_OF)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
def test_after_detach_an_embedding_table_is_on_the_gpu_again() -> None:
    """Same module, same parameter, same bits."""
    from qlora_space.fast.embedding import HostEmbedding
    from qlora_space.fast.warming import random_base

    config = CONFIG_MAPPING["qwen3"](
        **TINY | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 32_000},
        head_dim=64,
        tie_word_embeddings=False,
    )
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(random_base(config, "cuda"), lora)
    inputs = rows()
    base: nn.Module = model.get_base_model()  # type: ignore[assignment]
    embedding = base.get_input_embeddings()  # type: ignore[operator]
    weight, table = embedding.weight, embedding.weight.detach().cpu()
    with torch.no_grad():
        outputs = model(input_ids=inputs["input_ids"].cuda(), use_cache=False).logits
    step, text = attach(model)
    assert step is not None, text
    host = base.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(host, HostEmbedding)
    assert weight.device.type == "cpu"
    for policy in (ActivationPolicy.LAYER, ActivationPolicy.WEIGHTS):
        step.use_policy(policy)
        for _ in range(3):  # the second one is captured
            step(inputs, 78)
    step.detach()
    assert base.get_input_embeddings() is embedding  # type: ignore[operator]
    assert embedding.weight is weight
    assert weight.device.type == "cuda"
    assert torch.equal(weight.cpu(), table)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        again = model(input_ids=inputs["input_ids"].cuda(), use_cache=False).logits
    assert torch.equal(again, outputs)
    assert attach(model).step is not None
