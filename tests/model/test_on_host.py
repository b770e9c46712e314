"""A 4-bit base that is loaded layer by layer into host memory is the base that transformers loads."""

import torch
from bitsandbytes.nn import Linear4bit

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.model import load_base
from qlora_space.model.by_blocks import load_on_host


def test_its_weights_and_logits_are_the_same_bits() -> None:
    usual, on_host = load_base(BASE_FOLDER, 4, "cpu"), load_on_host(BASE_FOLDER, "cpu")
    theirs, mine = usual.state_dict(), on_host.state_dict()
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(usual(ids).logits, on_host(ids).logits)


def test_every_packed_weight_lies_in_its_layers_block() -> None:
    model = load_on_host(BASE_FOLDER, "cpu")
    for layer in model.model.layers:
        start, size = layer.host_block.bytes.data_ptr(), len(layer.host_block.bytes)
        for linear in layer.modules():
            if isinstance(linear, Linear4bit):
                assert start <= linear.weight.data_ptr() < start + size


def test_nothing_of_it_is_trained() -> None:
    assert not any(p.requires_grad for p in load_on_host(BASE_FOLDER, "cpu").parameters())
