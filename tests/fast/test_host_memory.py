"""A base in host memory: where its weights lie changes no number."""

import errno

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Qwen3Config

from qlora_space.fast import ActivationPolicy, host_memory, make_batch, move_to_host
from qlora_space.fast.host_memory import HostBlock, HostPrefetcher
from qlora_space.fast.model import build, fast_gradients
from qlora_space.fast.warming import random_base


class _Codes(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(0, 256, (3, size), dtype=torch.uint8))


def packed_model(*, on_host: bool) -> PeftModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=5, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    base = random_base(config, "cpu", on_host=on_host)
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    return model


def gradients(model: PeftModel, policy: ActivationPolicy) -> list[torch.Tensor]:
    ids = torch.randint(128, (1, 24), generator=torch.Generator().manual_seed(0))
    fast = build(model, policy, on_cpu=True)
    batch = make_batch(ids, ids.clone(), torch.arange(24)[None])
    fast_gradients(fast, batch)  # the second time begins with other layers at hand
    loss, grads = fast_gradients(fast, batch)
    return [loss, *grads]


@pytest.mark.parametrize("sizes", [(7,), (300, 1, 64)])
def test_what_is_moved_keeps_its_values_in_whichever_memory_is_shown(
    sizes: tuple[int, ...],
) -> None:
    layers = [_Codes(size) for size in sizes]
    before = [layer.codes.clone() for layer in layers]
    block = HostBlock([(layer, "codes") for layer in layers])
    other = torch.full_like(block.bytes, 7)
    assert all(torch.equal(x.codes, y) for x, y in zip(layers, before, strict=True))
    block.bind(block.views(other))
    assert all((layer.codes == 7).all() for layer in layers)
    block.bind()
    assert all(torch.equal(x.codes, y) for x, y in zip(layers, before, strict=True))


@pytest.mark.parametrize("policy", ActivationPolicy)
def test_gradients_are_the_same_bits_with_the_base_in_host_memory(policy: ActivationPolicy) -> None:
    here, there = (gradients(packed_model(on_host=on_host), policy) for on_host in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_each_layer_is_read_from_a_copy_and_the_next_one_is_fetched_meanwhile() -> None:
    layers = [_Codes(40) for _ in range(4)]
    blocks = [HostBlock([(layer, "codes")]) for layer in layers]
    home = [layer.codes.data_ptr() for layer in layers]
    prefetcher = HostPrefetcher(blocks, torch.device("cpu"))
    for index in (0, 1, 2, 3, 3, 2, 1, 0, 0):
        prefetcher.enter(index, index + 1)
        assert layers[index].codes.data_ptr() != home[index]
        others = [i for i in range(4) if i != index]
        assert all(layers[i].codes.data_ptr() == home[i] for i in others)
        assert index == 3 or index + 1 in prefetcher._holds
    prefetcher.leave()
    assert [layer.codes.data_ptr() for layer in layers] == home


def test_a_step_that_breaks_off_leaves_the_modules_reading_from_the_host() -> None:
    model = packed_model(on_host=True)
    linears = [m for m in model.modules() if isinstance(m, Linear4bit)]
    home = [linear.weight.data_ptr() for linear in linears]
    fast = build(model, ActivationPolicy.LAYER, on_cpu=True)
    fast.gradients.begin()
    ids = torch.arange(24)[None]
    batch = make_batch(ids, ids.clone(), ids)
    with pytest.raises(RuntimeError):
        fast.add_gradients(batch.padded(), torch.ones(3, 5, 7))
    assert [linear.weight.data_ptr() for linear in linears] == home


def test_moving_a_layer_takes_its_packed_weights_and_nothing_else() -> None:
    model = packed_model(on_host=False)
    layer = model.get_base_model().model.layers[0]  # type: ignore[union-attr]
    norms = [p.data_ptr() for n, p in layer.named_parameters() if "norm" in n]
    packed = sum(m.weight.numel() for m in layer.modules() if isinstance(m, Linear4bit))
    move_to_host(layer)  # type: ignore[arg-type]
    assert [p.data_ptr() for n, p in layer.named_parameters() if "norm" in n] == norms
    assert packed <= len(layer.host_block.bytes) <= packed + 7 * 256  # type: ignore[union-attr,operator]


def test_memory_that_the_host_does_not_have_is_a_memory_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(host_memory.mmap, "mmap", full)
    with pytest.raises(MemoryError, match="the host has no 256 bytes"):
        HostBlock([(_Codes(7), "codes")])
