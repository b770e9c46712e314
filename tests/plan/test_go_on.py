"""Training that goes on from an adapter takes everything that the adapter decides, and nothing that it cannot."""

from typing import Any

import pytest

from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.comparison import BaseRecipe
from qlora_space.core.errors import RequestError
from qlora_space.core.request import parse_request
from qlora_space.plan import Plan, least_gib_at, resolve
from qlora_space.plan.targets import linears_of
from tests.plan.test_mixtures import facts_of
from tests.plan.test_resolve import QWEN3_8B, gpu, rows

ALL = tuple(one.name for one in linears_of(QWEN3_8B))
START = AdapterFacts(base=QWEN3_8B.id, r=24, lora_alpha=48, linears=ALL)


def plan(start: AdapterFacts = START, base: Any = QWEN3_8B, **asked: object) -> Plan:
    return resolve(
        parse_request({"adapter": "me/tea", **asked}), base, rows(), gpu(139), start=start
    )


def test_rank_scale_and_layers_are_the_adapters_and_the_plan_says_so() -> None:
    made = plan()
    assert (made.r, made.lora_alpha, made.init, made.target_modules) == (
        24,
        48,
        "zero",
        "all-linear",
    )
    assert made.step_kind == "fast"
    assert {c.why for c in made.choices if c.name in ("r", "lora_alpha")} == {
        "that of the adapter that training goes on from"
    }
    attention = tuple(name for name in ALL if name.startswith("self_attn"))
    some = plan(START.model_copy(update={"linears": attention, "use_rslora": True}))
    assert set(some.target_modules.split(",")) == set(attention)
    assert some.use_rslora


def test_what_else_is_asked_about_the_plan_knows_the_adapter_too() -> None:
    made = plan()
    again = least_gib_at(parse_request({"adapter": "me/tea"}), made)
    assert again == made.estimate.least_gib


def test_a_mixtures_experts_keep_their_rank() -> None:
    base = facts_of("qwen3-30b-a3b")
    names = tuple(one.name for one in linears_of(base))
    start = AdapterFacts(base=base.id, r=16, expert_r=4, lora_alpha=16, linears=names)
    assert plan(start, base).expert_r == 4


@pytest.mark.parametrize(
    ("start", "asked", "why"),
    [
        ({"base": "other/base"}, {}, "was trained on other/base, but base is"),
        ({"base_revision": "f" * 40}, {}, "was trained on commit ffffffffffff"),
        ({"special": "is a DoRA"}, {}, "it is a DoRA"),
        ({"recipe": BaseRecipe(bits=2, is_packed=True)}, {}, "also repairs the base"),
        ({"linears": ("self_attn.qkv_proj",)}, {}, "is on self_attn.qkv_proj, which"),
        ({}, {"r": 16}, "r is 16, but the adapter that training goes on from has 24"),
        ({}, {"use_rslora": True}, "use_rslora is True"),
        ({}, {"target_modules": "attention"}, "target_modules is attention"),
        ({}, {"bits": 2}, "bits is 2"),
        ({}, {"init": "eora"}, "init goes with a new adapter"),
        ({}, {"calibrated": True}, "calibrated goes with a new adapter"),
        ({}, {"heal": True}, "heal goes with a new adapter"),
        ({}, {"use_dora": True}, "use_dora goes with a new adapter"),
    ],
)
def test_what_cannot_be_is_a_sentence(start: dict, asked: dict, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        plan(START.model_copy(update=start), **asked)
    assert caught.value.hint


def test_what_is_asked_for_and_is_so_is_no_conflict() -> None:
    attention = ",".join(name for name in ALL if name.startswith("self_attn"))
    start = START.model_copy(update={"linears": tuple(attention.split(","))})
    assert plan(start, r=24, init="zero", target_modules="attention").r == 24
