"""The built-in demo: its text is reproducible, its files are current and its base is trained."""

import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from demo.scores import answers_right, mean_loss
from demo.task import all_files
from demo.text import KINDS, documents, render_chat
from qlora_space.core.demo import BASE_FOLDER, GENERAL_FILE, HELDOUT_FILE, TRAIN_FILE


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE_FOLDER)


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()


def test_a_seed_names_its_text():
    first, again = (list(islice(documents(5), 300)) for _ in range(2))
    assert first == again
    assert first != list(islice(documents(6), 300))
    assert {kind for kind, _ in first} == set(KINDS)


def test_files_are_what_the_script_writes():
    for path, content in all_files().items():
        assert path.read_text(encoding="utf-8") == content, path.name


def test_heldout_shares_no_message_with_train():
    train = {row["messages"][0]["content"] for row in rows(TRAIN_FILE)}
    heldout = [row["messages"][0]["content"] for row in rows(HELDOUT_FILE)]
    assert len(train) == 1000
    assert len(set(heldout)) == 200
    assert train.isdisjoint(heldout)


def test_tickets_can_be_read_off_the_message():
    for row in rows(TRAIN_FILE) + rows(HELDOUT_FILE):
        message, ticket = (one["content"] for one in row["messages"])
        fields = dict(part.split(": ") for part in ticket.split(" | "))
        assert list(fields) == ["customer", "city", "item", "problem", "urgent"]
        assert all(fields[name] in message for name in ("customer", "city", "item"))


def test_base_is_small():
    weights = list(BASE_FOLDER.glob("*.safetensors"))
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= 6_000_000


def test_tokenizer_gives_back_every_text(tokenizer):
    texts = [row["text"] for row in rows(GENERAL_FILE)] + ["Grüße, 東京 + 🙂\n\ttab"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("<|im_end|><|pad|>")["input_ids"]
    assert ids == [tokenizer.eos_token_id, tokenizer.pad_token_id]


def test_template_renders_chats_and_marks_the_answer(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Good day."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == render_chat(messages)
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == render_chat(messages[:2]) + "<|im_start|>assistant\n"
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, answer in pairs if answer]) == "Good day.<|im_end|>"


def test_base_is_trained_and_does_not_know_the_task(base, tokenizer):
    texts = [row["text"] for row in rows(GENERAL_FILE)]
    heldout = [render_chat(row["messages"]) for row in rows(HELDOUT_FILE)]
    assert mean_loss(base, tokenizer, texts) < 1.4
    assert answers_right(base, tokenizer, heldout) <= 0.1
