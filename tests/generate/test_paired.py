"""Both panes rest on one base: shown for each bit width, and shown to fail when they do not."""

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from qlora_space.core.comparison import Answered, Chunk, Done, Question, Sampling, TokenOdds
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.generate import PairedGenerator, answer_batch, eos_token_ids
from qlora_space.generate.engine import Ask, Engine
from qlora_space.generate.likelihood import score_texts
from qlora_space.generate.paired import Prompted
from qlora_space.generate.slots import SlotCache
from qlora_space.model import load_adapter, load_base, save_adapter
from qlora_space.model.adapter import adapter_names, load_adapters

tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
PROMPT: list[int] = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Tell me a short story about a red lamp."}],
    add_generation_prompt=True,
)["input_ids"]


def adapted(bits: int, std: float = 0.6, seed: int = 0) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    model = get_peft_model(load_base(BASE_FOLDER, bits, "cpu"), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    return model


def prompted(prompt: list[int], num_panes: int, expected: str = "") -> Prompted:
    return Prompted(Question(prompt="x", expected=expected), (prompt,) * num_panes)


def ask(model: PeftModel, sampling: Sampling, strength: float = 1.0) -> tuple[list[Chunk], Done]:
    asked = [prompted(PROMPT, 2)]
    replies = list(PairedGenerator(model, tokenizer).generate(asked, sampling, strength))
    assert isinstance(replies[-1], Done)
    return [r for r in replies if isinstance(r, Chunk)], replies[-1]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_base_pane_is_what_the_base_generates_alone(bits: int) -> None:
    model = adapted(bits)
    chunks, done = ask(model, Sampling(max_new_tokens=24))
    assert done.same_base
    with model.disable_adapter():
        alone = answer_batch(model, tokenizer, [PROMPT], 24)[0]
    assert done.base == alone
    assert done.adapted != alone
    for pane in ("base", "adapted"):
        assert "".join(c.text for c in chunks if c.pane == pane) == getattr(done, pane)


def test_the_badge_turns_red_when_the_switch_is_broken() -> None:
    model = adapted(4)

    @contextmanager
    def does_nothing():
        yield

    model.disable_adapter = does_nothing  # type: ignore[method-assign]
    assert not ask(model, Sampling(max_new_tokens=2))[1].same_base


def test_the_adapted_pane_is_what_the_adapted_model_generates_alone() -> None:
    model = adapted(16)
    assert (
        ask(model, Sampling(max_new_tokens=24))[1].adapted
        == answer_batch(model, tokenizer, [PROMPT], 24)[0]
    )


def test_the_same_seed_gives_the_same_answers_and_another_gives_others() -> None:
    model = adapted(16)
    hot = [ask(model, Sampling(max_new_tokens=30, temperature=1.5, seed=s))[1] for s in (1, 1, 2)]
    assert (hot[0].base, hot[0].adapted) == (hot[1].base, hot[1].adapted)
    assert hot[0].base != hot[2].base


def test_a_tiny_top_p_is_greedy() -> None:
    model = adapted(16)
    greedy = ask(model, Sampling(max_new_tokens=16))[1]
    narrow = ask(model, Sampling(max_new_tokens=16, temperature=1.0, top_p=1e-6, seed=5))[1]
    assert (narrow.base, narrow.adapted) == (greedy.base, greedy.adapted)


def test_answers_stop_at_the_end_token_and_at_the_limit() -> None:
    model = adapted(4, std=0.0)
    _, done = ask(model, Sampling(max_new_tokens=200))
    assert "<|im_end|>" not in done.base
    assert len(tokenizer(done.base)["input_ids"]) < 200
    _, short = ask(model, Sampling(max_new_tokens=3))
    assert done.base.startswith(short.base)
    assert len(tokenizer(short.base)["input_ids"]) <= 3


def test_answers_of_a_batch_are_those_of_each_prompt_alone() -> None:
    model = load_base(BASE_FOLDER, 16, "cpu").float()
    prompts = [PROMPT, PROMPT[-9:], PROMPT[3:]]
    together = answer_batch(model, tokenizer, prompts, 12)
    assert together == [answer_batch(model, tokenizer, [p], 12)[0] for p in prompts]


def test_the_callback_runs_between_tokens_and_can_end_the_generation() -> None:
    model, tokenizer = adapted(4), AutoTokenizer.from_pretrained(BASE_FOLDER)
    calls: list[int] = []
    answer_batch(model, tokenizer, [PROMPT], 5, between_tokens=lambda: calls.append(1))
    assert 1 <= len(calls) <= 5

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        answer_batch(model, tokenizer, [PROMPT], 5, between_tokens=stop)


@pytest.mark.parametrize("mistake", ["swapped strengths", "a stale slot", "a wrong row"])
def test_the_badge_turns_red_when_the_engine_is_broken(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the model was compared with itself: what breaks later must be seen, too."""
    generator = PairedGenerator(adapted(4), tokenizer)
    sampling = Sampling(max_new_tokens=16)
    assert _done(generator, sampling).same_base
    match mistake:
        case "swapped strengths":
            monkeypatch.setattr(Engine, "strengths", _swapped)
        case "a stale slot":
            fill = SlotCache.fill

            def shifted(self: SlotCache, first: int, prompts: object, lengths: list[int]) -> None:
                fill(self, first, prompts, [n - 3 for n in lengths])  # type: ignore[arg-type]

            monkeypatch.setattr(SlotCache, "fill", shifted)
        case _:
            step = Engine.step
            monkeypatch.setattr(Engine, "step", lambda *args: step(*args).flip(0))
    assert not _done(generator, sampling).same_base


def _swapped(_: Engine, asks: list[Ask]) -> torch.Tensor:
    return torch.tensor([[1 - strength for strength in ask.strength] for ask in asks])


def _done(generator: PairedGenerator, sampling: Sampling) -> Done:
    *_, done = generator.generate([prompted(PROMPT, 2)], sampling)
    assert isinstance(done, Done)
    return done


@pytest.mark.parametrize("bits", [8, 4])
def test_at_strength_0_the_adapted_pane_is_the_base_bit_for_bit(bits: int) -> None:
    """By passes of the model at 8 bits, by the engine at 4."""
    _, done = ask(adapted(bits), Sampling(max_new_tokens=12), 0.0)
    assert done.same_base
    assert done.adapted == done.base
    assert all(token.adapted == pytest.approx(token.base, abs=0.1) for token in _odds(done))
    assert not any(token.rival for token in _odds(done))


@pytest.mark.parametrize("bits", [8, 4])
def test_strength_2_is_an_adapter_of_twice_the_change(bits: int) -> None:
    model, sampling = adapted(bits, std=0.2), Sampling(max_new_tokens=12)
    _, done = ask(model, sampling, 2.0)
    assert ask(model, sampling)[1].adapted != done.adapted, "strength is for one request only"
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data *= 2
    assert ask(model, sampling)[1].adapted == done.adapted


def test_each_token_has_its_likelihood_under_base_and_adapter() -> None:
    model = adapted(16, std=0.3)
    _, done = ask(model, Sampling(max_new_tokens=16))
    answer = done.rows[0].adapted
    assert "".join(token.text for token in answer.tokens) == answer.text
    eos_ids = eos_token_ids(model.get_base_model(), tokenizer)
    ids = Engine(model, eos_ids, ["default"]).answers([Ask(PROMPT, 16, (1.0,))])[0]
    under = {}
    for name in ("base", "adapted"):
        with model.disable_adapter() if name == "base" else nullcontext():
            scored = score_texts(model, [(PROMPT, ids)])[0]
        under[name] = scored
        given = [getattr(token, name) for token in answer.tokens]
        assert given == pytest.approx(scored.log_probs, abs=0.15)  # bf16
    for token, behind in zip(answer.tokens, under["base"].behind, strict=True):
        assert bool(token.rival) == (behind > 0.1)
    assert len(answer.tokens) > 4
    assert any(token.rival for token in answer.tokens)
    assert answer.shift is not None
    assert answer.shift > 0


def test_many_questions_are_answered_as_each_alone_and_expected_answers_are_weighed() -> None:
    model, sampling = adapted(4), Sampling(max_new_tokens=8)
    prompts = [PROMPT, PROMPT[:4] + PROMPT[6:], PROMPT[4:]]
    generator = PairedGenerator(model, tokenizer)
    asked = [
        prompted(p, 2, expected)
        for p, expected in zip(prompts, ("A lamp.", "", "Red"), strict=True)
    ]
    *progress, done = generator.generate(asked, sampling)
    assert isinstance(done, Done)
    assert [(r.done, r.total) for r in progress if isinstance(r, Answered)][-1] == (3, 3)
    assert done.same_base
    for each, row in zip(asked, done.rows, strict=True):
        *_, alone = generator.generate([each], sampling)
        assert isinstance(alone, Done)
        assert (row.base.text, row.adapted.text) == (alone.base, alone.adapted)
        assert row.gain == pytest.approx(alone.rows[0].gain, abs=1e-2)
    assert [row.gain is None for row in done.rows] == [False, True, False]
    assert [row.base.is_right for row in done.judged("exact").rows] == [False, None, False]
    ids = tokenizer("A lamp.", add_special_tokens=False)["input_ids"]
    with model.disable_adapter():
        own = score_texts(model, [(PROMPT, ids)])[0].log_probs
    assert done.rows[0].base.expected_log_prob == pytest.approx(sum(own) / len(own), abs=1e-2)


@pytest.mark.parametrize("bits", [8, 4])
def test_panes_may_have_prompts_of_their_own(bits: int) -> None:
    model, sampling = adapted(bits), Sampling(max_new_tokens=8)
    other = PROMPT[:4] + PROMPT[6:]
    asked = Prompted(Question(prompt="x"), (other, PROMPT))
    *_, done = PairedGenerator(model, tokenizer).generate([asked], sampling)
    assert isinstance(done, Done)
    assert done.same_base
    assert done.adapted == answer_batch(model, tokenizer, [PROMPT], 8)[0]
    with model.disable_adapter():
        assert done.base == answer_batch(model, tokenizer, [other], 8)[0]


def test_of_many_questions_the_badge_turns_red_when_rows_are_swapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator, sampling = PairedGenerator(adapted(4), tokenizer), Sampling(max_new_tokens=8)
    asked = [prompted(PROMPT, 2), prompted(PROMPT[4:], 2)]
    *_, done = generator.generate(asked, sampling)
    assert isinstance(done, Done)
    assert done.same_base
    monkeypatch.setattr(Engine, "strengths", _swapped)
    *_, done = generator.generate(asked, sampling)
    assert isinstance(done, Done)
    assert not done.same_base


def _odds(done: Done) -> tuple[TokenOdds, ...]:
    return done.rows[0].adapted.tokens


@pytest.mark.parametrize("bits", [8, 4])
def test_each_of_several_adapters_answers_in_a_pane_of_its_own(tmp_path: Path, bits: int) -> None:
    folders = [tmp_path / str(seed) for seed in range(3)]
    for seed, folder in enumerate(folders):
        save_adapter(adapted(4, seed=seed), folder)
    names, sampling = adapter_names(3), Sampling(max_new_tokens=8)
    model = load_adapters(load_base(BASE_FOLDER, bits, "cpu"), folders)
    asked = [prompted(PROMPT, 4, "Yes.")]
    *_, done = PairedGenerator(model, tokenizer, (), names).generate(asked, sampling)
    assert isinstance(done, Done)
    assert done.same_base
    alone = []
    for folder in folders:
        one = load_adapter(load_base(BASE_FOLDER, bits, "cpu"), folder)
        alone.append(ask(one, sampling)[1])
    answers = done.rows[0].answers
    assert [answer.text for answer in answers] == [alone[0].base, *(one.adapted for one in alone)]
    assert len({answer.text for answer in answers}) == 4
    with model.disable_adapter():
        ids = tokenizer("Yes.", add_special_tokens=False)["input_ids"]
        base = score_texts(model, [(PROMPT, ids)])[0].log_probs
    assert answers[0].expected_log_prob == pytest.approx(sum(base) / len(base), abs=0.1)
    assert len({answer.expected_log_prob for answer in answers}) == 4
