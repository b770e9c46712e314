"""The LoRA adapter: put into a base, saved as peft's own files, loaded back. Always fp32."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError, first_line
from qlora_space.core.targets import (
    ALL_LINEAR,
    chosen_linears,
    name_behind_layer,
    shortest_targets,
)
from qlora_space.experts import expert_targets, linear_targets, visible_experts
from qlora_space.lowbit import add_lora
from qlora_space.lowbit.text_model import adaptable_linears, raw_linears
from qlora_space.plan import Plan

WEIGHTS_FILE = "adapter_model.safetensors"


def add_adapter(base: PreTrainedModel, plan: Plan) -> PeftModel:
    """LoRA on the planned linear layers of the decoder and on its experts; B is zero, so the outputs are the base's.

    Raises RequestError for layers that the base does not have.
    """
    with visible_experts(base):
        model = add_lora(
            base,
            r=plan.r,
            lora_alpha=plan.lora_alpha,
            lora_dropout=plan.lora_dropout,
            target_modules=_targets(base, plan),
            expert_targets=expert_targets(base) if plan.expert_r else (),
            expert_r=plan.expert_r,
            use_rslora=plan.use_rslora,
            use_dora=plan.use_dora,
            seed=plan.seed,
            revision=plan.base.sha if plan.base.source == "hub" else None,
        )
    # peft writes the folder that the base was loaded from; an adapter names its base, not a folder of this machine.
    is_here = plan.base.source == "local"
    name = Path(plan.base.id).name if is_here else plan.base.id
    model.peft_config["default"].base_model_name_or_path = name
    return model


def _targets(base: PreTrainedModel, plan: Plan) -> list[str] | None:
    """As peft takes them; None for all linears of a dense model."""
    raw = {name.rpartition(".")[2] for name in raw_linears(base)}
    everywhere = (
        [n for n in linear_targets(base) if n not in raw] if plan.base.num_experts else None
    )
    if plan.target_modules == ALL_LINEAR:
        return everywhere
    allowed = adaptable_linears(base)
    if everywhere is not None:
        allowed = {name for name in allowed if name.rpartition(".")[2] in everywhere}
    linears = {name_behind_layer(name) for name in allowed}
    chosen = chosen_linears(linears, plan.target_modules)
    others = {name_behind_layer(name) for name, _ in base.named_modules()} - chosen
    return shortest_targets(chosen, others)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write peft's two files. Raises ModelError if a weight is not finite."""
    weights = get_peft_model_state_dict(model)
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise ModelError(
            f"The adapter has {len(broken)} tensors that are not finite, so it was not saved.",
            "Start again with a lower learning rate.",
        )
    with (
        warnings.catch_warnings()
    ):  # peft asks the Hub for the base's config to compare vocabularies
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    # peft's empty card; ours is written when publishing.
    (folder / "README.md").unlink(missing_ok=True)


def adapter_names(count: int) -> list[str]:
    """Names that `load_adapters` gives: peft's own for the first."""
    return ["default", *(f"adapter_{number}" for number in range(2, count + 1))]


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter on a base for inference. Raises ModelError if it does not fit."""
    return load_adapters(base, [folder])


def load_adapters(base: PreTrainedModel, folders: Sequence[Path]) -> PeftModel:
    """The same for several; the first one is active. Raises ModelError if one does not fit."""
    first, *others = zip(adapter_names(len(folders)), folders, strict=True)
    try:
        with visible_experts(base):
            model = PeftModel.from_pretrained(base, first[1], is_trainable=False)
            for name, folder in others:
                model.load_adapter(str(folder), name, is_trainable=False)
    except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"The adapter could not be loaded: {first_line(error)}.",
            "Choose the base that it was trained on.",
        ) from error
    return model.eval()


def adapter_sha256(folder: Path) -> str:
    """Hash of the weights, independent of the header: names in order, then bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / WEIGHTS_FILE).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
