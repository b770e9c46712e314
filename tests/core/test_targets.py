"""Which linear layers an option means, by their names."""

import pytest

from qlora_space.core.errors import RequestError
from qlora_space.core.request import parse_request
from qlora_space.core.targets import chosen_linears, name_behind_layer, shortest_targets

LLAMA = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
}  # fmt: skip
NEMOTRON = {"mixer.in_proj", "mixer.q_proj", "mixer.up_proj", "mixer.down_proj"}


@pytest.mark.parametrize(
    ("names", "target", "meant"),
    [
        (LLAMA, "all-linear", LLAMA),
        (LLAMA, "attention", {n for n in LLAMA if "attn" in n}),
        (LLAMA, "mlp", {n for n in LLAMA if "mlp" in n}),
        (LLAMA, "q_proj,v_proj", {"self_attn.q_proj", "self_attn.v_proj"}),
        (LLAMA, "self_attn.q_proj,mlp", {"self_attn.q_proj", *(n for n in LLAMA if "mlp" in n)}),
        (NEMOTRON, "mlp", {"mixer.up_proj", "mixer.down_proj"}),
        (NEMOTRON, "attention", {"mixer.in_proj", "mixer.q_proj"}),
        ({"fc1", "self_attn.out_proj"}, "mlp", {"fc1"}),
        ({"conv.in_proj", "feed_forward.w1"}, "attention", {"conv.in_proj"}),
        ({"per_layer_input_gate"}, "attention,mlp", set()),
    ],
)
def test_parts_and_names_mean_layers(names: set[str], target: str, meant: set[str]) -> None:
    assert chosen_linears(names, target) == meant


@pytest.mark.parametrize("name", ["q", "proj", "mlp.q_proj", "embed_tokens"])
def test_a_name_that_the_base_does_not_have_is_refused_with_those_it_has(name: str) -> None:
    with pytest.raises(RequestError, match=rf"names {name}, but .* it has down_proj, .*v_proj"):
        chosen_linears(LLAMA, f"q_proj,{name}")


def test_what_is_behind_the_number_of_a_layer_is_the_name() -> None:
    assert name_behind_layer("model.layers.31.self_attn.q_proj") == "self_attn.q_proj"
    assert name_behind_layer("h.0.mlp.c_proj") == "mlp.c_proj"
    assert name_behind_layer("model.per_layer_model_projection") == "per_layer_model_projection"


def test_a_name_that_is_in_two_places_is_written_with_its_owner() -> None:
    assert shortest_targets({"mlp.c_fc", "mlp.c_proj"}, {"attn.c_proj", "attn.c_attn"}) == [
        "c_fc",
        "mlp.c_proj",
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (" q_proj , v_proj,q_proj", "q_proj,v_proj"),
        (["q_proj", "mlp.down_proj"], "q_proj,mlp.down_proj"),
        ("attention", "attention"),
        (" ", "all-linear"),
    ],
)
def test_names_may_be_a_list_or_a_text(written: object, read: str) -> None:
    assert parse_request({"target_modules": written}).target_modules == read


MANY = ",".join(f"n{i}" for i in range(40))


@pytest.mark.parametrize("written", ["q_proj;v_proj", ".*", "a b", "x" * 90, MANY, ["<b>"]])
def test_what_is_no_name_is_refused(written: object) -> None:
    with pytest.raises(RequestError, match="target_modules"):
        parse_request({"target_modules": written})
