"""Every family on a tiny checkpoint: what is packed and adapted is what the plan counts, and packed rows are right."""

import functools
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from qlora_space.core.errors import ModelError, RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.hub import model_facts
from qlora_space.hub.text_config import state_carried
from qlora_space.lowbit import add_lora
from qlora_space.lowbit.architecture import lm_logits
from qlora_space.model import load_base
from qlora_space.model.loaded import (
    LoadedBase,
    loaded_base,
    require_as_planned,
    require_separate_documents,
)
from qlora_space.plan.memory import adapter_parameters
from tests.base_trial import plan_of
from tests.tiny_families import DENSE, HYBRIDS, RECURRENT, VOCABULARY, WRAPPERS, build

TRAINED = (*DENSE, *HYBRIDS, *WRAPPERS)
DOCUMENTS = (40, 9, 23)
LARGEST_DIFFERENCE = 2e-5  # of the largest value: fp32 sums in another order


@functools.cache
def checkpoint(name: str) -> Path:
    return build(name, Path(tempfile.mkdtemp(prefix="family-")) / name)


@functools.cache
def facts_of(name: str) -> ModelFacts:
    return model_facts(str(checkpoint(name)), None, None)


@functools.cache
def wide(name: str) -> Any:
    """In fp32, with an adapter on it that changes something."""
    model = add_lora(load_base(checkpoint(name), 16, "cpu"), r=4, lora_alpha=8).float()
    torch.manual_seed(1)
    for parameter_name, weight in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_loaded_is_what_the_plan_counts(name: str) -> None:
    facts = facts_of(name)
    loaded = loaded_base(add_lora(load_base(checkpoint(name), 4, "cpu"), r=4, lora_alpha=4))
    require_as_planned(loaded, facts, 4)
    assert loaded.quantized == pytest.approx(facts.linear_parameters, rel=0.01)
    assert loaded.parameters == pytest.approx(facts.parameters, rel=0.01)
    assert loaded.trained == pytest.approx(adapter_parameters(facts, 4), rel=0.15)
    assert facts.num_experts or loaded.adapted >= 0.8 * loaded.quantized


def test_a_base_that_is_not_quantized_as_planned_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Falcon, whose linears bitsandbytes does not know, was trained in 16 bits unseen."""
    monkeypatch.setattr("qlora_space.lowbit.text_model._PLAIN_LINEARS", set())
    loaded = loaded_base(add_lora(load_base(checkpoint("falcon"), 4, "cpu"), r=4, lora_alpha=4))
    assert loaded.quantized == 0
    with pytest.raises(ModelError, match=r"did not come out as planned: 0 of its .* are in 4 bits"):
        require_as_planned(loaded, facts_of("falcon"), 4)


@pytest.mark.parametrize(("quantized", "in_16_bits", "fits"), [
    (1000, 100, True), (990, 110, True), (1000, 90, True), (985, 115, False), (1000, 115, False),
])  # fmt: skip
def test_one_percent_of_the_weights_may_be_otherwise(
    quantized: int, in_16_bits: int, fits: bool
) -> None:
    facts = facts_of("llama").model_copy(update={"parameters": 1100, "linear_parameters": 1000})
    loaded = LoadedBase(quantized, in_16_bits, adapted=0, adapters=0, trained=0)
    with nullcontext() if fits else pytest.raises(ModelError):
        require_as_planned(loaded, facts, 4)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_model_without_attention_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="has no attention"):
        facts_of(name)


@pytest.mark.parametrize("name", [*DENSE, *HYBRIDS, *WRAPPERS])
def test_packed_documents_are_computed_as_if_alone(name: str) -> None:
    """Logits and gradients. A base that mixes them is one that is not packed, and would be found out."""
    facts, off = facts_of(name), max(_differences(name))
    assert plan_of(checkpoint(name)).packing == (off < LARGEST_DIFFERENCE)
    if off < LARGEST_DIFFERENCE:
        return require_separate_documents(wide(name), facts)
    if name == "falcon-h1":
        return None  # its small multipliers let little through here
    with pytest.raises(ModelError, match="see the one before it"):
        require_separate_documents(wide(name), facts)


@pytest.mark.parametrize("name", [n for n in (*HYBRIDS, *WRAPPERS) if n in HYBRIDS or "3.5" in n])
def test_a_base_that_carries_state_is_known(name: str) -> None:
    plan = plan_of(checkpoint(name))
    assert not plan.packing
    assert "carry state" in next(c.why for c in plan.choices if c.name == "packing")
    assert max(_differences(name)) > LARGEST_DIFFERENCE, "it can be packed now"


@pytest.mark.parametrize(
    "name", ["gpt2", "pythia", "opt", "falcon", "gemma4", "gemma3n-text", "bamba"]
)
def test_few_bits_are_refused_in_the_plan_where_they_cannot_be(name: str) -> None:
    with pytest.raises(RequestError, match="cannot be packed block by block to 3 bits"):
        plan_of(checkpoint(name), bits=3, group_size=32)
    assert plan_of(checkpoint(name), bits=4).bits == 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "granitemoehybrid", "layer_types": ["linear_attention", "attention"]},
            "Mamba",
        ),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]}, "Mamba"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention", "attention"]}, ""),
        (
            {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}},
            "Gated DeltaNet",
        ),
        ({"model_type": "lfm2"}, "short convolution"),
        ({"model_type": "new", "layer_types": ["linear_attention"]}, "Gated DeltaNet"),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]}, ""),
    ],
)
def test_what_carries_state_is_told_by_type_and_layers(config: dict, words: str) -> None:
    assert state_carried(config) == words


@torch.no_grad()
@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_those_of_the_class(name: str) -> None:
    """trl and low bits go from last hidden states to logits themselves."""
    model, ids = load_base(checkpoint(name), 16, "cpu").float().eval(), _ids(30)[None]
    logits: Any = model(input_ids=ids, use_cache=False).logits
    decoder: Any = model.get_decoder()
    states = decoder(input_ids=ids, use_cache=False).last_hidden_state
    assert _off(lm_logits(model, states), logits) < LARGEST_DIFFERENCE
    wanted = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    add_fused_lm_head(model)
    got = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0]
    assert _off(got, wanted) < LARGEST_DIFFERENCE


@torch.no_grad()
@pytest.mark.parametrize("name", TRAINED)
def test_padding_changes_nothing(name: str) -> None:
    """To the right in training, to the left in answers."""
    model, ids = wide(name).eval(), _ids(17)
    alone = model(input_ids=ids[None], use_cache=False).logits[0]
    right = torch.nn.functional.pad(ids, (0, 15), value=3)[None]
    positions = torch.cat([torch.arange(17), torch.arange(15)])[None]
    padded = model(input_ids=right, position_ids=positions, use_cache=False).logits[0, :17]
    assert _off(padded, alone) < LARGEST_DIFFERENCE
    both = torch.stack([torch.nn.functional.pad(ids, (6, 0), value=3), _ids(23)])
    mask = torch.ones_like(both)
    mask[0, :6] = 0
    new = model.generate(
        input_ids=both, attention_mask=mask, max_new_tokens=4, do_sample=False, output_logits=True,
        return_dict_in_generate=True, eos_token_id=None, pad_token_id=3,
    )  # fmt: skip
    assert _off(new.logits[0][0], alone[-1]) < LARGEST_DIFFERENCE


def _differences(name: str) -> tuple[float, float]:
    """Of logits and of gradients between documents in one row and each alone."""
    model = wide(name).eval()  # some have dropout
    documents = [_ids(length, seed) for seed, length in enumerate(DOCUMENTS)]
    trained = [p for p in model.parameters() if p.requires_grad]
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS])[None]
    packed = model(
        input_ids=torch.cat(documents)[None], position_ids=positions, use_cache=False
    ).logits[0]
    alone = torch.cat([model(input_ids=d[None], use_cache=False).logits[0] for d in documents])
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x.square().mean(), trained)])
        for x in (packed, alone)
    ]
    return _off(packed, alone), _off(*grads)


def _ids(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        10, VOCABULARY - 20, (length,), generator=torch.Generator().manual_seed(seed)
    )


def _off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())
