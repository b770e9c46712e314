"""Which linear layers of a base an adapter is put on, by their names behind a layer's number: self_attn.q_proj."""

import re
from collections.abc import Collection

from qlora_space.core.errors import RequestError

ALL_LINEAR, ATTENTION, MLP = "all-linear", "attention", "mlp"
_NAME = re.compile(r"[A-Za-z0-9_.]{1,80}")
_NUMBER = re.compile(r"(?:^|\.)\d+\.")
_MOST_NAMES = 32
_MLP_NAMES = {
    "up_proj", "gate_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc", "w1", "w2", "w3",
    "dense_h_to_4h", "dense_4h_to_h", "input_linear", "output_linear",
}  # fmt: skip
_MLP_OWNERS = ("mlp", "feed_forward", "ffn", "moe", "expert")
# What mixes tokens: attention, and what takes its place in hybrids.
_ATTENTION_OWNERS = ("attn", "attention", "mixer", "mamba", "conv", "temporal", "delta")


def parse_targets(value: object) -> object:
    """Accept a list of names beside 'q_proj,v_proj'; names lose what is around them."""
    names = value if isinstance(value, (list, tuple)) else str(value).split(",")
    found = [str(name).strip() for name in names if str(name).strip()]
    if len(found) > _MOST_NAMES or not all(map(_NAME.fullmatch, set(found) - {ALL_LINEAR})):
        raise ValueError("write all-linear, attention, mlp, or names as q_proj,v_proj")
    return ",".join(dict.fromkeys(found)) or ALL_LINEAR


def name_behind_layer(name: str) -> str:
    """'model.layers.3.self_attn.q_proj' without what all layers share; the last part where there is no number."""
    number = _NUMBER.search(name)
    return name[number.end() :] if number else name.rpartition(".")[2]


def chosen_linears(names: Collection[str], target_modules: str) -> frozenset[str]:
    """Those of `names`, which stand behind a layer's number, that are meant: a whole part, or all that end with one of
    the names given.

    Raises RequestError for a name that none of them ends with.
    """
    if target_modules == ALL_LINEAR:
        return frozenset(names)
    chosen: set[str] = set()
    for target in target_modules.split(","):
        if target in (ATTENTION, MLP):
            chosen |= {name for name in names if _part_of(name) == target}
            continue
        found = {name for name in names if f".{name}".endswith(f".{target}")}
        if not found:
            raise RequestError(
                f"target_modules names {target}, but the base has no such linear layers; it has "
                f"{', '.join(sorted(set(map(_last, names)))) or 'none'}.",
                "Write all-linear, attention, mlp, or some of these names.",
            )
        chosen |= found
    return frozenset(chosen)


def shortest_targets(chosen: Collection[str], others: Collection[str]) -> list[str]:
    """`chosen` as peft takes them: by their last names where no other layer ends so."""
    kept = set(map(_last, others))
    return sorted({name if _last(name) in kept else _last(name) for name in chosen})


def _part_of(name: str) -> str:
    owners = name.rpartition(".")[0]
    if _last(name) in _MLP_NAMES or any(word in owners for word in _MLP_OWNERS):
        return MLP
    return ATTENTION if any(word in owners for word in _ATTENTION_OWNERS) else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]
