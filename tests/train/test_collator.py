import random

import torch

from qlora_space.demo import BASE_FOLDER
from qlora_space.model import load_base
from qlora_space.train.collator import PackedCollator, PackedRow


def document(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 2000) for _ in range(length)]


def packed(documents: list[list[int]]) -> PackedRow:
    ids = [token for doc in documents for token in doc]
    return PackedRow(input_ids=ids, labels=list(ids), seq_lengths=[len(doc) for doc in documents])


def losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Nats per predicted token, (B, S - 1); 0 where there is no label."""
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]  # a cache turns the packed mask off
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return flat.view_as(labels)


def test_packed_documents_have_the_losses_they_have_alone() -> None:
    model = load_base(BASE_FOLDER, 16, "cpu").float().eval()
    documents = [document(n, seed) for seed, n in enumerate((40, 7, 90, 33))]
    collate = PackedCollator(pad_token_id=0)
    with torch.no_grad():
        together = losses(model, collate([packed(documents[:3]), packed(documents[3:])]))
        start = 0
        for doc in documents[:3]:
            alone = losses(model, collate([packed([doc])]))[0, : len(doc) - 1]
            torch.testing.assert_close(
                together[0, start : start + len(doc) - 1], alone, atol=1e-4, rtol=1e-4
            )
            start += len(doc)
        alone = losses(model, collate([packed(documents[3:])]))[0, : len(documents[3]) - 1]
        torch.testing.assert_close(
            together[1, : len(documents[3]) - 1], alone, atol=1e-4, rtol=1e-4
        )


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
