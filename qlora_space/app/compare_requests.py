"""What a comparison loads, for a run or for an adapter on the Hub: which base, which adapter, at which bits."""

from pathlib import Path

from qlora_space.core.comparison import BaseRecipe, CompareRequest, Sampling
from qlora_space.core.facts import ModelFacts
from qlora_space.core.options import Format
from qlora_space.hub.download import PACKED_FOLDER
from qlora_space.runs import RunFolder


def request_for_run(run: RunFolder, prompt: str, system: str, sampling: Sampling) -> CompareRequest:
    """The run's newest adapter, prompts rendered as in training. Raises RunError if adapter or base are gone."""
    plan = run.plan()
    run.check_base()
    return CompareRequest(
        base=plan.base,
        bits=plan.bits,
        adapter_folder=str(run.newest_adapter()),
        packed_folder=str(run.packed_folder) if plan.is_low_bit else "",
        group_size=plan.group_size,
        cpu_offload=plan.cpu_offload,
        prompt=prompt,
        system=system,
        stop_token_ids=run.stop_token_ids(),
        format=Format(plan.dataset.format),
        sampling=sampling,
    )


def request_for_adapter(
    folder: Path,
    recipe: BaseRecipe,
    base: ModelFacts,
    prompt: str,
    system: str,
    sampling: Sampling,
    quantized_folder: Path,
) -> CompareRequest:
    """An adapter that was fetched from the Hub, or that lies in a folder, with the base it names."""
    packed = quantized_folder / "of-others"  # not there yet: packed from the base
    if recipe.comes_along:
        packed = folder / PACKED_FOLDER
    return CompareRequest(
        base=base,
        bits=recipe.bits,
        packed_folder=str(packed) if recipe.is_packed else "",
        group_size=recipe.group_size,
        adapter_folder=str(folder.resolve()),
        format=Format.MESSAGES,
        prompt=prompt,
        system=system,
        sampling=sampling,
    )
