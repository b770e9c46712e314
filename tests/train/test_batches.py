import inspect
import random
from collections.abc import Iterator

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.model import load_base
from qlora_space.train.batches import PackedCollator, PackedRow

VOCABULARY = 512
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
}
SLIDING = {"sliding_window": 16}  # shorter than the documents, in some of the layers
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, **SLIDING, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SIZES, **SLIDING, query_pre_attn_scalar=16),
}
# A model's own rows of documents: long and short, one token, a whole row, two rows in a batch.
LENGTHS = ((40, 7, 90, 1, 33), (64,), (5, 100, 2))


def random_model(name: str, attention: str, device: str = "cpu") -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation=attention)
    for parameter in model.parameters():  # wider than a fresh model's: its losses are all the same
        torch.nn.init.normal_(parameter, std=0.15)
    return model.float().eval().to(device)


def worst_difference(model: torch.nn.Module) -> float:
    """Nats, of any token's loss in a packed batch to its loss with the document alone."""
    rows = [[document(n, 10 * at + i) for i, n in enumerate(row)] for at, row in enumerate(LENGTHS)]
    collate = PackedCollator(pad_token_id=0)
    worst = 0.0
    with torch.no_grad():
        together = losses(model, collate([packed(row) for row in rows]))
        assert together.max() - together[together > 0].min() > 1  # nothing is compared with itself
        for at, row in enumerate(rows):
            start = 0
            for doc in row:
                alone = losses(model, collate([packed([doc])]))[0, : len(doc) - 1]
                found = together[at, start : start + len(doc) - 1]
                if len(doc) > 1:
                    worst = max(worst, (found - alone).abs().max().item())
                start += len(doc)
    return worst


def document(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, VOCABULARY) for _ in range(length)]


def packed(documents: list[list[int]]) -> PackedRow:
    ids = [token for doc in documents for token in doc]
    return PackedRow(input_ids=ids, labels=list(ids), seq_lengths=[len(doc) for doc in documents])


def losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Nats per predicted token, (B, S - 1); 0 where there is no label."""
    device = next(model.parameters()).device
    batch = {name: values.to(device) for name, values in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]  # a cache turns the packed mask off
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return flat.view_as(labels)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (n, a) for n in MODELS for a in ("sdpa", "eager") if (n, a) != ("gemma2", "sdpa")
    ],  # it has none
)
def test_packed_documents_have_the_losses_they_have_alone(name: str, attention: str) -> None:
    assert worst_difference(random_model(name, attention)) < 1e-5


def test_packed_documents_of_the_demo_base_have_the_losses_they_have_alone() -> None:
    assert worst_difference(load_base(BASE_FOLDER, 16, "cpu").float().eval()) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "sdpa"), ("qwen3", "sdpa"), ("gemma2", "eager"), ("gemma3", "sdpa")],
)
def test_packed_documents_have_the_losses_they_have_alone_on_a_gpu(
    name: str, attention: str
) -> None:
    assert worst_difference(random_model(name, attention, "cuda")) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_varlen_attention_is_as_exact_as_its_dtype(name: str, varlen: str) -> None:
    """Its kernel takes bf16 and fp16 only: packing may change no more than the rounding does."""
    difference = worst_difference(random_model(name, varlen, "cuda").half())
    rounding = worst_difference(random_model(name, "sdpa", "cuda").half())
    assert difference < max(2 * rounding, 5e-3), f"{rounding:.1e} with sdpa"


@pytest.fixture
def varlen() -> Iterator[str]:
    """torch's own kernel for documents of different lengths, told where they begin by the position ids."""
    AttentionInterface.register("varlen_for_test", _varlen_attention)
    AttentionMaskInterface.register("varlen_for_test", lambda *args, **kwargs: None)
    return "varlen_for_test"


def _varlen_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """query (B, heads, S, d), key and value (B, fewer heads, S, d) -> (B, S, heads, d)."""
    from torch.nn.attention.varlen import varlen_attn

    starts = (kwargs["position_ids"].expand(len(query), -1).flatten() == 0).nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([query.shape[0] * query.shape[2]])]).int()
    flat = [
        each.repeat_interleave(query.shape[1] // each.shape[1], 1).transpose(1, 2).flatten(0, 1)
        for each in (query, key, value)
    ]
    assert abs(scaling - query.shape[-1] ** -0.5) < 1e-6
    longest = int(ends.diff().max())
    takes_window = "window_size" in inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if takes_window else {"is_causal": True}
    found = varlen_attn(
        *(each.contiguous() for each in flat), ends, ends, longest, longest, **causal
    )
    return found.view(query.shape[0], query.shape[2], query.shape[1], -1), None


def test_no_document_is_asked_for_the_first_token_of_the_next() -> None:
    batch = PackedCollator(pad_token_id=0, multiple_of=16)(
        [packed([document(5, 0), document(6, 1)])]
    )
    assert batch["labels"][0, 0] == -100
    assert batch["labels"][0, 5] == -100
    assert (batch["labels"][0, 11:] == -100).all()
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


def test_padding_is_never_trained_and_widths_are_few() -> None:
    batch = PackedCollator(pad_token_id=9, multiple_of=64)(
        [packed([document(5, 0)]), packed([document(70, 1)])]
    )
    assert batch["input_ids"].shape == (2, 128)
    assert (batch["input_ids"][0, 5:] == 9).all()
    assert (batch["labels"][0, 5:] == -100).all()
