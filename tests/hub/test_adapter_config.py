"""What the files of an adapter say, and what training could not go on from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qlora_space.core.errors import ModelError
from qlora_space.hub import read_adapter

PLAIN = {"peft_type": "LORA", "base_model_name_or_path": "a/base", "r": 8, "lora_alpha": 16}
_LAYER = "base_model.model.model.layers.3"
NAMES = [f"{_LAYER}.self_attn.q_proj", f"{_LAYER}.mlp.up_proj"]
EXPERTS = {
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "rank_pattern": {"mlp.experts.gate_up_proj": 2, "mlp.experts.down_proj": 2},
    "alpha_pattern": {"mlp.experts.gate_up_proj": 4, "mlp.experts.down_proj": 4},
}


def adapter(folder: Path, names: list[str] = NAMES, **config: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | config))
    weights = {f"{n}.lora_{side}.weight": np.zeros((2, 2)) for n in names for side in "AB"}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_rank_scale_layers_and_base_are_read(tmp_path: Path) -> None:
    facts = read_adapter("me/tea", adapter(tmp_path, use_rslora=True, revision="v1"))
    assert (facts.base, facts.base_revision, facts.r, facts.lora_alpha) == ("a/base", "v1", 8, 16)
    assert facts.linears == ("mlp.up_proj", "self_attn.q_proj")
    assert facts.use_rslora
    assert not facts.special


def test_experts_have_a_rank_and_are_no_linears(tmp_path: Path) -> None:
    names = [*NAMES, f"{_LAYER}.mlp.experts", f"{_LAYER}.mlp.experts.base_layer"]
    facts = read_adapter("me/tea", adapter(tmp_path, names, **EXPERTS))
    assert (facts.expert_r, facts.special) == (2, "")
    assert facts.linears == ("mlp.up_proj", "self_attn.q_proj")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "VERA"}, "of the kind VERA"),
        ({"peft_type": ["x" * 10**5]}, "of the kind"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"bias": "all"}, "biases"),
        ({"rank_pattern": {"q_proj": 4}}, "differ between layers"),
        ({"alpha_pattern": {"q_proj": 4}}, "differ between layers"),
        (EXPERTS | {"rank_pattern": {"mlp.experts.down_proj": 2}}, "differ between layers"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"r": -1}, "whole rank"),
        ({"r": 2.5}, "whole rank"),
        ({"r": True}, "whole rank"),
        ({"lora_alpha": 0.5}, "whole rank"),
        ({"lora_alpha": "many"}, "whole rank"),
    ],
)
def test_what_is_more_than_lora_of_one_rank_is_named(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    special = read_adapter("me/tea", adapter(tmp_path, **config)).special
    assert words in special
    assert len(special) < 100


def test_an_adapter_that_names_no_base_or_is_damaged_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="me/tea does not name its base"):
        read_adapter("me/tea", tmp_path)
    (adapter(tmp_path) / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="damaged"):
        read_adapter("me/tea", tmp_path)
