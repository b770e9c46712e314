"""Bases of 2, 3 and 4 bits, and the LoRA adapter that repairs what the bits cost; knows nothing of the app.

    windows = Windows.from_texts(tokenizer, texts, heldout_texts)
    base = quantize_base("path/to/base", Recipe(bits=2), windows)
    model = add_repair(base)

`base.evaluator()` compares with the 16-bit base, `save_lowbit` and `load_lowbit` keep the packed base on disk, `heal`
distils the repaired model towards the 16-bit one. `load_quantized` and `load_packed` are the lines of model cards.

Names are imported when they are first used, so importing the package is cheap and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_space.lowbit.build import LowBitBase, Recipe, quantize_base
    from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
    from qlora_space.lowbit.distill import HealRecipe, default_heal_learning_rate, heal
    from qlora_space.lowbit.evaluate import Evaluation, ReferenceEvaluator
    from qlora_space.lowbit.pretrained import load_packed, load_quantized
    from qlora_space.lowbit.repair import add_lora, add_repair
    from qlora_space.lowbit.windows import Windows

_MODULE_OF = {
    "Evaluation": "evaluate",
    "HealRecipe": "distill",
    "LowBitBase": "build",
    "Recipe": "build",
    "ReferenceEvaluator": "evaluate",
    "Windows": "windows",
    "add_lora": "repair",
    "add_repair": "repair",
    "default_heal_learning_rate": "distill",
    "heal": "distill",
    "load_lowbit": "checkpoint",
    "load_packed": "pretrained",
    "load_quantized": "pretrained",
    "quantize_base": "build",
    "save_lowbit": "checkpoint",
}
__all__ = [
    "Evaluation",
    "HealRecipe",
    "LowBitBase",
    "Recipe",
    "ReferenceEvaluator",
    "Windows",
    "add_lora",
    "add_repair",
    "default_heal_learning_rate",
    "heal",
    "load_lowbit",
    "load_packed",
    "load_quantized",
    "quantize_base",
    "save_lowbit",
]


def __getattr__(name: str) -> Any:
    """PEP 562. No module here has one of these names, or it would hide the name once it is imported."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
