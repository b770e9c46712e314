"""The code of every kind of card is run as it stands, against a Hub, and gives the model that was trained."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.hub.card.how_to_load import loading_code
from qlora_space.hub.publish import publish_adapter
from qlora_space.lowbit.architecture import default_dtype
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import save_lowbit
from qlora_space.model import fresh_load, load_base
from tests.fake_hub import ALICE, FakeHub
from tests.hub.conftest import plan_of
from tests.model.test_merge import adapter_on, logits
from tests.train.small import tiny_base

KINDS: dict[str, tuple[int, str, dict[str, bool]]] = {
    "16 bits": (16, "hub", {}),
    "8 bits": (8, "hub", {}),
    "4 bits": (4, "hub", {}),
    "4 bits, demo": (4, "demo", {}),
    "2 bits, packed again": (2, "hub", {}),
    "2 bits, for the 16-bit base": (2, "hub", {"for_16_bit": True}),
    "2 bits, with its base": (2, "hub", {"with_base": True}),
}


def base_of(bits: int, folder: Path, *, for_16_bit: bool) -> PreTrainedModel:
    if bits == 2 and not for_16_bit:
        return pack_base(folder, 2, 64, "cpu", default_dtype("cpu"))
    return load_base(folder, 16 if for_16_bit else bits, "cpu")


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_model_that_was_trained(name: str, hub: FakeHub, tmp_path: Path) -> None:
    bits, source, kind = KINDS[name]
    flags = {"for_16_bit": False, "with_base": False} | kind
    folder = BASE_FOLDER if source == "demo" else tiny_base()
    adapter = adapter_on(load_base(folder, 16, "cpu"), tmp_path / "adapter")
    for file in (*folder.glob("tokenizer*"), *folder.glob("*.jinja")):
        (adapter / file.name).write_bytes(file.read_bytes())
    packed = None
    if flags["with_base"]:
        packed = tmp_path / "packed"
        save_lowbit(base_of(2, folder, for_16_bit=False), packed)
    publish_adapter(adapter, "# Card", "alice/new", False, ALICE, "0" * 32, packed_base=packed)
    if source == "hub":
        hub.add_model("alice/base", folder)
    facts = model_facts("alice/base" if source == "hub" else source, None, None)
    request = TrainingRequest.model_validate({"bits": bits, "group_size": 64, "base": facts.id})
    code = loading_code(plan_of(request, facts), "alice/new", **flags)
    model, tokenizer = fresh_load.load(code)
    base = base_of(bits, folder, for_16_bit=flags["for_16_bit"])
    wanted = logits(PeftModel.from_pretrained(base, adapter))
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)
    assert tokenizer.chat_template == (folder / "chat_template.jinja").read_text()
