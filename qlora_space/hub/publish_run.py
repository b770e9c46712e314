"""From a run folder to the user's Hub repository: check the adapter, write card and record, push, verify."""

import contextlib
import json
import time
from pathlib import Path

from qlora_space.core.comparison import BaseRecipe
from qlora_space.core.errors import DiskFull, RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.adapter_files import ADAPTER_FILES, refuse_not_finite
from qlora_space.hub.card.model_card import model_card
from qlora_space.hub.publish import Published, publish_adapter
from qlora_space.plan import Plan
from qlora_space.runs import Publication, Report, RunFolder, view_of
from qlora_space.runs.export import export_for_16_bit


def publish_run(
    run: RunFolder,
    repo: str,
    private: bool,
    token: str | None,
    *,
    for_16_bit: bool = False,
    with_base: bool = False,
) -> Published:
    """Push the finished adapter as one commit, verify it, and note it in the run folder, which keeps everything.

    `for_16_bit` takes the repair of the low-bit base out of the adapter, `with_base` publishes the packed base too.
    Raises RunError if there is nothing to publish in this way, HubError if the adapter is damaged or not finite, or the
    Hub refuses.
    """
    report = run.report()
    if not run.has_adapter or report is None:
        raise RunError(
            "This run has no finished adapter.",
            "Wait until it is done, or stop it and keep the adapter.",
        )
    refuse_not_finite(run.adapter_folder / ADAPTER_FILES[0])
    request, plan, losses = run.request(), run.plan(), view_of(run).series("loss")
    _refuse_variant(run, plan, for_16_bit, with_base)
    variant = {"for_16_bit": for_16_bit, "with_base": with_base}
    published = publish_adapter(
        _exported(run) if for_16_bit else run.adapter_folder,
        card=model_card(plan, report, request, losses, repo, **variant),
        record=_record_json(request, plan, report, _recipe(plan, **variant)),
        repo=repo,
        private=private,
        token=token,
        run_id=run.id,
        packed_base=run.packed_folder if with_base else None,
    )
    with contextlib.suppress(DiskFull):  # it is published all the same
        run.add_publication(_noted(published))
    return published


def _noted(published: Published) -> Publication:
    return Publication(
        repo=published.repo,
        url=published.url,
        commit=published.commit,
        num_files=published.num_files,
        created=published.created,
        time=time.time(),
    )


def _refuse_variant(run: RunFolder, plan: Plan, for_16_bit: bool, with_base: bool) -> None:
    """Raises RunError if this adapter cannot be published in this way."""
    if for_16_bit and with_base:
        raise RunError(
            "An adapter for the 16-bit base does not need the packed one.", "Ask for one of them."
        )
    if with_base and not (plan.is_low_bit and run.has_packed_base):
        raise _no_packed_base(plan)
    if for_16_bit and not plan.is_low_bit:
        raise RunError(
            f"This adapter was trained on a {plan.bits}-bit base that it does not repair.",
            "Publish it as it is.",
        )
    if plan.base_is_own and not (for_16_bit or with_base):
        raise RunError(
            "This base was rounded with the help of the calibration text, so no recipe packs it again.",
            "Publish the packed base with the adapter, or publish for the 16-bit base.",
        )


def _no_packed_base(plan: Plan) -> RunError:
    why = "its folder is gone" if plan.is_low_bit else "this run has none"
    hint = "Train again." if plan.base_is_own else "Publish the adapter without it."
    return RunError(f"There is no packed base to publish: {why}.", hint)


def _exported(run: RunFolder) -> Path:
    folder = run.path / "for_16_bit"
    export_for_16_bit(run, folder)
    return folder


def _recipe(plan: Plan, *, for_16_bit: bool, with_base: bool) -> BaseRecipe:
    return BaseRecipe(
        bits=16 if for_16_bit else plan.bits,
        group_size=plan.group_size,
        is_packed=plan.is_low_bit and not for_16_bit,
        comes_along=with_base,
    )


def _record_json(request: TrainingRequest, plan: Plan, report: Report, base: BaseRecipe) -> str:
    """The record is public: of sources that are folders of this machine only the last part is in it."""
    if not plan.dataset.is_public:
        report = report.model_copy(update={"answers": ()})
    record = {"request": request, "plan": plan, "report": report, "base": base}
    text = json.dumps(
        {name: value.model_dump(mode="json") for name, value in record.items()}, indent=1
    )
    for source in (request.dataset, request.base, plan.dataset.id, plan.base.id):
        if Path(source).is_absolute():
            text = text.replace(json.dumps(source), json.dumps(Path(source).name))
    return text
