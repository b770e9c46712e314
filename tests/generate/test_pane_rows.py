"""Where rows of one batch cannot have adapters of their own, every pane is its own pass, and says the same."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from qlora_space.core.comparison import Done, Question, Sampling
from qlora_space.experts import expert_targets, linear_targets, visible_experts
from qlora_space.generate import PairedGenerator
from qlora_space.generate.paired import Prompted
from qlora_space.generate.pane_rows import mixes_rows
from qlora_space.lowbit import add_lora
from qlora_space.model import load_base, save_adapter
from qlora_space.model.adapter import adapter_names, load_adapters
from tests.experts.tiny_mixtures import build


def adapted_mixture(folder: Path, seed: int) -> PeftModel:
    base = load_base(folder, 4, "cpu")
    with visible_experts(base):
        model = add_lora(
            base, r=4, lora_alpha=4, lora_dropout=0.0, target_modules=linear_targets(base),
            expert_targets=expert_targets(base), expert_r=2, use_rslora=False, use_dora=False, seed=seed,
            revision=None,
        )  # fmt: skip
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model


def test_several_adapters_of_a_mixture_answer_as_each_alone_at_any_strength(tmp_path: Path) -> None:
    folder = build("qwen3-moe", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapters = [tmp_path / str(seed) for seed in range(2)]
    for seed, adapter in enumerate(adapters):
        save_adapter(adapted_mixture(folder, seed), adapter)

    def answers(which: list[Path], strength: float = 1.0) -> list[tuple[str, float | None]]:
        model = load_adapters(load_base(folder, 4, "cpu"), which)
        assert mixes_rows(model)
        generator = PairedGenerator(model, tokenizer, (), adapter_names(len(which)))
        asked = Prompted(Question(prompt="x", expected="yes"), ([5, 6, 7],) * (1 + len(which)))
        *_, done = generator.generate([asked], Sampling(max_new_tokens=6), strength)
        assert isinstance(done, Done)
        assert done.same_base
        return [(a.text, a.expected_log_prob) for a in done.rows[0].answers]

    together = answers(adapters)
    first, second = answers(adapters[:1]), answers(adapters[1:])
    assert together == [first[0], first[1], second[1]]
    assert len({likelihood for _, likelihood in together}) == 3
    off = answers(adapters[:1], 0.0)
    assert off[0] == off[1] == first[0]
    assert answers(adapters[:1], 0.5)[1] not in (first[0], first[1])
