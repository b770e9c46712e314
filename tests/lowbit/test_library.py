"""What somebody's own script imports: windows of texts, a repaired base, the lines of a model card."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from qlora_space import lowbit
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import DatasetError, HubError, ModelError
from qlora_space.lowbit import (
    LowBitBase,
    Recipe,
    Windows,
    add_repair,
    load_lowbit,
    load_packed,
    load_quantized,
    quantize_base,
    save_lowbit,
)
from qlora_space.lowbit.build import pack_base
from tests.fake_hub import ALICE, FakeHub


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(100, 140)[None]).logits


def test_importing_the_library_is_cheap_and_every_name_is_there() -> None:
    code = (
        "import sys; from qlora_space import lowbit;"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules);"
        "print(all(getattr(lowbit, name) for name in lowbit.__all__))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "True"
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        _ = lowbit.anything  # type: ignore[attr-defined]


def test_texts_become_windows_and_the_held_out_ones_come_last() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
    windows = Windows.from_texts(
        tokenizer, ["Ada has a red lamp. " * 40], ["Hugo."], length=32, max_tokens=64
    )
    rows = len(windows.ids)
    assert rows == windows.num_calibration + 1
    assert windows.is_text[:-1].all()
    assert tokenizer.decode(windows.ids[-1][windows.is_text[-1]]) == "Hugo."
    assert not windows.ids[-1][~windows.is_text[-1]].any()


@pytest.mark.parametrize(
    ("texts", "heldout", "name"), [([], ["a"], "calibration"), (["a"], [""], "held-out")]
)
def test_texts_without_tokens_are_refused(texts: list[str], heldout: list[str], name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
    with pytest.raises(DatasetError, match=f"The {name} texts have no tokens"):
        Windows.from_texts(tokenizer, texts, heldout)


def test_a_repaired_base_comes_back_from_disk_with_the_same_logits(
    windows: Windows, tmp_path: Path
) -> None:
    """With peft's own files for the adapter."""
    base = quantize_base(
        str(BASE_FOLDER), Recipe(bits=3, group_size=32, r=4), windows, dtype=torch.float32
    )
    save_lowbit(base.model, tmp_path / "base")
    plain = logits(base.model)
    model = add_repair(base)
    repaired = logits(model)
    assert not torch.equal(repaired, plain)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_lowbit(tmp_path / "base", dtype=torch.float32)
    assert torch.equal(logits(loaded), plain)
    again = PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    assert torch.equal(logits(again), repaired)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_lines_of_a_card_download_weights_and_configuration_only(
    built: LowBitBase, hub: FakeHub, tmp_path: Path
) -> None:
    save_lowbit(built.model, tmp_path / "base")
    files = {f"base/{f.name}": f.read_bytes() for f in (tmp_path / "base").iterdir()}
    hub.add_model("alice/packed", files | {"base/model.py": b"raise SystemExit"})
    hub.add_model("alice/plain", BASE_FOLDER)
    packed_before = load_packed("alice/packed", token=ALICE, dtype=torch.float32, device="cpu")
    assert torch.equal(logits(packed_before), logits(built.model))
    packed_again = load_quantized(
        "alice/plain", bits=2, group_size=32, dtype=torch.float32, device="cpu"
    )
    by_weights = pack_base(BASE_FOLDER, 2, 32, "cpu", torch.float32)
    assert torch.equal(logits(packed_again), logits(by_weights))
    assert not any("model.py" in str(request) for request in hub.requests)


def test_a_base_that_cannot_be_had_is_a_sentence(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="alice/none could not be read from the Hub") as caught:
        load_quantized("alice/none", bits=2, token=ALICE)
    assert ALICE not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(ModelError, match="neither a Hub id nor a folder"):
        load_packed("not a name/at all/of any kind")
    with pytest.raises(ModelError, match=r"has no base/config\.json"):
        load_packed(tmp_path)
