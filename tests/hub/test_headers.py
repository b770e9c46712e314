"""Which tensors of a checkpoint are weights of its text, by the names that real files have."""

import pytest

from qlora_space.hub.headers import Tensor, count_weights

TEXT = {
    "embed_tokens.weight": (100, 8),
    "layers.0.self_attn.q_proj.weight": (8, 8),
    "layers.0.input_layernorm.weight": (8,),
    "layers.1.self_attn.q_proj.weight": (8, 8),
    "layers.1.input_layernorm.weight": (8,),
    "norm.weight": (8,),
}
TOWERS = {  # by the prefix of the text beside them
    "model.": ("visual.blocks.0.attn.qkv.weight", "visual.merger.mlp.0.weight"),
    "model.language_model.": ("model.visual.blocks.0.attn.qkv.weight", "mtp.layers.0.mlp.up_proj.weight"),
    "language_model.model.": ("vision_tower.encoder.layers.0.mlp.fc1.weight", "multi_modal_projector.weight"),
}  # fmt: skip
TOWER_SHAPE = (16, 8)


def tensors_of(shapes: dict[str, tuple[int, ...]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, "BF16", shape) for name, shape in shapes.items())


@pytest.mark.parametrize("prefix", TOWERS)
def test_towers_and_later_tokens_are_not_weights_of_the_text(prefix: str) -> None:
    text = tensors_of({prefix + name: shape for name, shape in TEXT.items()})
    towers = tensors_of(dict.fromkeys(TOWERS[prefix], TOWER_SHAPE))
    alone, beside = count_weights(text), count_weights((*text, *towers))
    assert beside.parameters == alone.parameters == 100 * 8 + 2 * 64 + 3 * 8
    assert beside.linear_parameters == alone.linear_parameters == 2 * 64
    assert (alone.left_out, beside.left_out) == (0, 2 * 16 * 8)


def test_layers_beyond_the_last_one_predict_later_tokens() -> None:
    """As DeepSeek V3 and GLM 4.5 have them; transformers leaves them out."""
    text = tensors_of({f"model.{name}": shape for name, shape in TEXT.items()})
    counted = count_weights(text, num_layers=1)
    assert counted.linear_parameters == 64
    assert counted.left_out == 64 + 8


def test_what_is_read_past_its_layer_is_not_quantized() -> None:
    """Mamba's out_proj, told by A_log and D; Gated DeltaNet has no D, and its out_proj is a linear like others."""
    block = {"in_proj.weight": (32, 8), "out_proj.weight": (8, 32), "A_log": (4,)}
    delta = {f"model.layers.0.linear_attn.{name}": shape for name, shape in block.items()}
    mamba = {f"model.layers.0.mamba.{name}": shape for name, shape in {**block, "D": (4,)}.items()}
    assert count_weights(tensors_of(delta)).linear_parameters == 2 * 32 * 8
    assert count_weights(tensors_of(mamba)).linear_parameters == 32 * 8
