"""From a run folder to the user's Hub repository: the card is written, the adapter pushed and checked."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors.numpy
from pydantic import BaseModel
from safetensors import SafetensorError

from qlora_space import hub
from qlora_space.core.comparison import BaseRecipe
from qlora_space.core.errors import RunError
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder, view_of
from qlora_space.runs.export import export_for_16_bit


def publish_run(
    run: RunFolder,
    repo: str,
    private: bool,
    token: str | None,
    *,
    for_16_bit: bool = False,
    with_base: bool = False,
) -> hub.Published:
    """Push the finished adapter as one commit and read it back; `for_16_bit` takes the repair of its low-bit base out,
    `with_base` sends the packed base along.

    Raises RunError if there is nothing finished and sound to push, HubError if the Hub does not take it;
    the adapter stays where it is.
    """
    report = run.report()
    if not run.has_adapter or report is None:
        raise RunError(
            "This run has no finished adapter.",
            "Wait until it is done, or stop it and keep the adapter.",
        )
    _check_finite(run.adapter_folder / "adapter_model.safetensors")
    request, plan = run.request(), run.plan()
    _check_kind(run, plan, for_16_bit, with_base)
    losses = view_of(run).series("loss")
    base = BaseRecipe(
        bits=16 if for_16_bit else plan.bits,
        group_size=plan.group_size,
        is_packed=plan.is_low_bit and not for_16_bit,
        comes_along=with_base,
    )
    record = {"request": request, "plan": plan, "report": report, "base": base}
    places = (request.dataset, request.base, plan.dataset.id, plan.base.id)
    folder = run.adapter_folder
    if for_16_bit:
        folder = run.path / "for_16_bit"
        export_for_16_bit(run, folder)
    return hub.publish_adapter(
        folder,
        card=hub.model_card(
            plan, report, request, losses, repo, for_16_bit=for_16_bit, with_base=with_base
        ),
        record=_without_places(record, places),
        repo=repo,
        private=private,
        token=token,
        run_id=run.id,
        packed_base=run.packed_folder if with_base else None,
    )


def _check_kind(run: RunFolder, plan: Plan, for_16_bit: bool, with_base: bool) -> None:
    if for_16_bit and with_base:
        raise RunError(
            "An adapter for the 16-bit base does not need the packed one.", "Ask for one of them."
        )
    if with_base and not (plan.is_low_bit and run.has_packed_base):
        raise RunError(
            "There is no packed base to publish: "
            + ("its folder is gone." if plan.is_low_bit else "this run has none."),
            "Publish the adapter without it." if not plan.base_is_own else "Train again.",
        )
    if for_16_bit and not plan.is_low_bit:
        raise RunError(
            f"This adapter was trained on a {plan.bits}-bit base that it does not repair.",
            "Publish it as it is.",
        )
    if plan.base_is_own and not (for_16_bit or with_base):
        raise RunError(
            "This base was rounded with the calibration text in view, so that no recipe packs it again.",
            "Publish the packed base with the adapter, or publish for the 16-bit base.",
        )


def _check_finite(weights_file: Path) -> None:
    """Training saves no such adapter; a disk may still have damaged it. Raises RunError."""
    hint = "Resume the run if it can be, or train again."
    try:
        weights = safetensors.numpy.load_file(weights_file)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError("The weights of the adapter cannot be read.", hint) from error
    broken = [name for name, weight in weights.items() if not np.isfinite(weight).all()]
    if broken:
        raise RunError(f"{len(broken)} tensors of the adapter are not finite.", hint)


def _without_places(record: dict[str, BaseModel], places: Iterable[str]) -> str:
    """JSON in which folders of this machine are only names: the record is for everybody to read."""
    text = json.dumps(
        {name: value.model_dump(mode="json") for name, value in record.items()}, indent=1
    )
    for place in places:
        if Path(place).is_absolute():
            text = text.replace(json.dumps(place), json.dumps(Path(place).name))
    return text
