"""The linear layers of a base by name, and whether an adapter is on all of them."""

from qlora_space.core.facts import LinearFacts, ModelFacts
from qlora_space.core.targets import ALL_LINEAR, chosen_linears


def linears_of(base: ModelFacts) -> tuple[LinearFacts, ...]:
    """Those of the checkpoint; where it does not say their shapes, the usual seven of a layer, but
    those of an MLP that is experts."""
    if base.linears:
        return base.linears
    heads = base.num_attention_heads * base.head_dim
    kv = base.num_key_value_heads * base.head_dim
    h, i = base.hidden_size, base.intermediate_size
    sides = {
        "self_attn.q_proj": h + heads, "self_attn.k_proj": h + kv, "self_attn.v_proj": h + kv,
        "self_attn.o_proj": heads + h, "mlp.gate_proj": h + i, "mlp.up_proj": h + i, "mlp.down_proj": i + h,
    }  # fmt: skip
    layers, is_mixture = base.num_hidden_layers, base.num_experts > 0
    return tuple(
        LinearFacts(name=name, sides=size * layers)
        for name, size in sides.items()
        if not (is_mixture and name.startswith("mlp."))
    )


def adapts_all(base: ModelFacts, target_modules: str) -> bool:
    """Whether no linear layer is left out; experts are not among them."""
    if target_modules == ALL_LINEAR:
        return True
    names = [one.name for one in linears_of(base)]
    return len(chosen_linears(names, target_modules)) == len(names)
