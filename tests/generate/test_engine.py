"""Answers of the engine are those of the model's own generate, whatever shares a batch with them."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_space.core.comparison import Sampling
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.generate.engine import Ask, Engine
from qlora_space.generate.row_adapters import Unsupported
from qlora_space.model import load_base

_TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 12},
    "gemma2": {"sliding_window": 12, "attn_implementation": "eager"},
    "gemma3_text": {
        "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
    },
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "granite": {},
    "minicpm3": {  # whose projection from its latent gets tokens in four dimensions
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip
PROMPTS = [[5, 9, 17], [3, 8, 4, 100, 7, 6, 250, 11], [40, 41], list(range(20, 44))]


def tiny(family: str) -> PeftModel:
    torch.manual_seed(0)
    settings = _TINY | _FAMILIES[family]
    attention = settings.pop("attn_implementation", None)
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    return adapted(model)


def adapted(model: torch.nn.Module) -> PeftModel:
    targets = [
        n for n in ("q_proj", "v_proj", "qkv_proj", "kv_b_proj", "down_proj") if _has(model, n)
    ]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()  # type: ignore[return-value]


def _has(model: torch.nn.Module, name: str) -> bool:
    return any(n.endswith(name) for n, _ in model.named_modules())


def own(model: PeftModel, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of the model's own generate."""
    found = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", _FAMILIES)
def test_every_row_is_what_generate_gives_for_it_alone_with_the_adapter_and_without(
    family: str,
) -> None:
    model = tiny(family)
    asks = [Ask(p, 20, (strength,)) for p in PROMPTS for strength in (0.0, 1.0)]
    found = Engine(model, set(), ["default"], num_slots=3).answers(asks)
    for ask, answer in zip(asks, found, strict=True):
        if ask.strength == (1.0,):
            assert answer == own(model, list(ask.prompt), 20)
        else:
            with model.disable_adapter():
                assert answer == own(model, list(ask.prompt), 20)


def test_answers_of_different_lengths_enter_and_leave() -> None:
    model = tiny("qwen3")
    asks = [Ask(PROMPTS[i % 4], 1 + 5 * (i % 5), (1.0,)) for i in range(17)]
    found = Engine(model, set(), ["default"], num_slots=4).answers(asks)
    assert found == [own(model, list(a.prompt), a.max_new_tokens) for a in asks]


def test_an_answer_ends_with_an_end_token_and_its_row_goes_to_another() -> None:
    model = tiny("llama")
    full = [own(model, p, 20) for p in PROMPTS]
    ends = {full[0][4], full[1][9]}
    found = Engine(model, ends, ["default"], num_slots=2).answers([Ask(p, 20) for p in PROMPTS])
    for answer, whole in zip(found, full, strict=True):
        cut = next((i for i, token in enumerate(whole) if token in ends), len(whole))
        assert answer == whole[:cut]


def test_a_quantized_base_answers_as_it_does_by_itself() -> None:
    model = adapted(load_base(BASE_FOLDER, 4, "cpu"))
    found = Engine(model, set(), ["default"]).answers([Ask(p, 12) for p in PROMPTS])
    assert found == [own(model, p, 12) for p in PROMPTS]


def test_half_of_an_adapter_lies_between() -> None:
    model = tiny("llama")
    engine = Engine(model, set(), ["default"])
    base, half, whole = engine.after_prompt([Ask(PROMPTS[1], 1, (s,)) for s in (0.0, 0.5, 1.0)])
    for layer in model.modules():
        if hasattr(layer, "scaling") and isinstance(layer.scaling, dict):
            layer.scaling["default"] *= 0.5
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([PROMPTS[1]])).logits[0, -1]
    assert torch.allclose(half, expected, atol=1e-4)
    assert not torch.allclose(half, base, atol=1e-2)
    assert not torch.allclose(half, whole, atol=1e-2)


def test_a_log_probability_is_that_of_the_models_own_pass() -> None:
    model = tiny("qwen3")
    tokens = [
        t for step in Engine(model, set(), ["default"]).stream([Ask(PROMPTS[1], 8)]) for t in step
    ]
    ids = torch.tensor([[*PROMPTS[1], *(t.id for t in tokens)]])
    with torch.no_grad():
        own_log_probs = model(input_ids=ids).logits[0, len(PROMPTS[1]) - 1 : -1].log_softmax(-1)
    for token, row in zip(tokens, own_log_probs, strict=True):
        assert token.log_prob == pytest.approx(float(row[token.id]), abs=1e-4)


def test_a_seed_gives_the_same_answer_whoever_is_beside_it() -> None:
    model = tiny("llama")
    hot = Ask(PROMPTS[0], 12, (1.0,), Sampling(temperature=1.2, seed=7))
    engine = Engine(model, set(), ["default"], num_slots=3)
    alone = engine.answers([hot])[0]
    assert engine.answers([Ask(PROMPTS[3], 9), hot, Ask(PROMPTS[1], 4)])[1] == alone


def test_the_model_is_as_before_even_where_an_answer_was_broken_off() -> None:
    model = tiny("llama").train()
    with torch.no_grad():
        before = model(input_ids=torch.tensor([PROMPTS[1]])).logits
    stream = Engine(model, set(), ["default"]).stream([Ask(PROMPTS[1], 8)])
    next(stream)
    stream.close()
    with torch.no_grad():
        after = model(input_ids=torch.tensor([PROMPTS[1]])).logits
    assert torch.equal(before, after)
    assert model.training


def test_what_differs_from_the_models_own_pass_is_unsupported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda *args: 1.5 * step(*args))
    with pytest.raises(Unsupported, match="differs from the model's own"):
        Engine(model, set(), ["default"]).answers([Ask(PROMPTS[0], 4)])


def test_models_that_keep_a_state_are_unsupported() -> None:
    settings = _TINY | {"layer_types": ["conv", "full_attention", "conv"]}
    config = AutoConfig.for_model("lfm2", **settings)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(Unsupported, match="conv"):
        Engine(model, set())
