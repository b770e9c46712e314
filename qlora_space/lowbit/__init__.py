"""Bases of 2, 3 and 4 bits, and the LoRA adapter that repairs what the bits cost. Knows nothing of the app.

    windows = Windows.from_texts(tokenizer, texts, heldout_texts)
    base = quantize_base("path/to/base", Recipe(bits=2), windows)
    model = add_repair(base)

`base.evaluator()` compares with the 16-bit base, `save_lowbit` and `load_lowbit` keep the packed base on disk, `heal`
distils the repaired model towards the 16-bit one. `load_quantized` and `load_packed` are the lines of model cards.
"""

from qlora_space.lowbit.build import LowBitBase, Recipe, quantize_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.evaluate import Evaluation, ReferenceEvaluator
from qlora_space.lowbit.heal import HealRecipe, default_heal_learning_rate, heal
from qlora_space.lowbit.pretrained import load_packed, load_quantized
from qlora_space.lowbit.repair import add_lora, add_repair
from qlora_space.lowbit.windows import Windows

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
