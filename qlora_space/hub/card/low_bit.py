"""What the card of an adapter for a low-bit base says beside the rest: what the bits cost, and how to pack the base."""

from collections.abc import Sequence

from qlora_space.core.events import QualityPoint
from qlora_space.plan import Plan
from qlora_space.plan.memory import bits_per_weight

EXPORTED = (
    " It is exported for the 16-bit base: the repair of the low-bit base that it started from is taken out, which "
    "doubles the rank that it was trained with. All figures below were measured on the low-bit base."
)


def gate_table(plan: Plan, points: Sequence[QualityPoint]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every state of the base before training."""
    names = {
        "16 bit": "16 bit",
        "quantized": f"{plan.mean_width:g} bit",
        "start": f"{plan.mean_width:g} bit, {plan.init} start",
        "healed": f"{plan.mean_width:g} bit, {plan.init} start, healed",
    }
    rows = [[names[r.name], f"{r.ppl:.4g}", f"{r.kl:.3f}", f"{r.top1:.0%}"] for r in points]
    return ["base", "perplexity", "KL (nats/token)", "same next word"], rows


def how_to_load_low_bit(plan: Plan, repo: str, base: str, revision: str) -> str:
    """The base is packed anew from the 16-bit weights by the same recipe; peft loads the adapter."""
    grid = f"bits={plan.bits}, group_size={plan.group_size}"
    code = [
        "from peft import PeftModel",
        "from qlora_space.lowbit import load_quantized",
        "",
        f"base = load_quantized({base}{revision}, {grid})",
        f'model = PeftModel.from_pretrained(base, "{repo}")',
    ]
    why = (
        f"The adapter also repairs what {plan.mean_width:g} bits cost the base, so it belongs to the base packed by "
        "this recipe (`pip install qlora-space`); on the 16-bit base it would repair what is not broken."
    )
    return f"## How to load it\n\n{why}\n\n```python\n" + "\n".join(code) + "\n```"


def how_to_load_packed(plan: Plan, repo: str) -> str:
    """The packed base lies beside the adapter; peft loads the adapter."""
    code = [
        "from peft import PeftModel",
        "from qlora_space.lowbit import load_packed",
        "",
        f'base = load_packed("{repo}")',
        f'model = PeftModel.from_pretrained(base, "{repo}")',
    ]
    size = bits_per_weight(plan.mean_bits or plan.bits, plan.group_size, is_packed=True)
    why = (
        f"The base that it was trained on lies in `base/`, packed to about {size:.2f} bits a weight. The adapter "
        "belongs to it and also repairs what the bits cost; on the 16-bit base it would repair what is not broken. "
        "qlora_space loads it (`pip install qlora-space`). The licence of the base holds for it too."
    )
    return f"## How to load it\n\n{why}\n\n```python\n" + "\n".join(code) + "\n```"


def low_bit_settings(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    """Rows of the card's table of settings."""
    return (
        ("base", "group_size", f"{plan.group_size}", "weights per scale"),
        *([("base", "mean_bits", f"{plan.mean_bits:g}", "mixed")] if plan.mean_bits else ()),
        ("base", "gptq", "yes" if plan.gptq else "no", "rounded with the calibration text"),
        ("LoRA", "init", plan.init, "start of the adapter"),
        ("LoRA", "heal", "yes" if plan.heal else "no", ""),
    )
