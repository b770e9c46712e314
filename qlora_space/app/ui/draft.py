"""The run that the form describes, as far as it is known: inspected and planned, or why it cannot be."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import as_qlora_space_error
from qlora_space.app.ui.uploads import base_source, dataset_source
from qlora_space.core.errors import DatasetError, HubError, ModelError, QloraSpaceError, Superseded
from qlora_space.core.facts import ModelFacts
from qlora_space.core.inspection import Inspection
from qlora_space.core.options import Preset
from qlora_space.core.request import TrainingRequest, parse_request, seen_by_inspection
from qlora_space.core.wording import counted, gib, price
from qlora_space.plan import Plan
from qlora_space.runs import Quality

START = "Start training"
CHECKING = "Checking the data …"
SIGN_IN = "Sign in to start"
_LONG_SECONDS = 600.0
# Errors in the data that one decision of the person ends, by code.
_DECISIONS = {
    "guessed_columns": "Confirm the columns",
    "linked_rows": "Confirm that each row stands alone",
    "nothing_held_out": "Choose other held-out rows",
}


@dataclass(frozen=True)
class Draft:
    """Lives in gr.State, on the server. An error belongs to the section where it can be fixed."""

    sources: tuple[str, str] = ("", "")  # dataset and base, as the form names them
    request: TrainingRequest | None = None
    base: ModelFacts | None = None
    inspection: Inspection | None = None
    plan: Plan | None = None
    quick: Plan | None = None  # as a quick look, where the plan takes long on a CPU
    quality: tuple[Quality, ...] = ()
    data_error: QloraSpaceError | None = None
    base_error: QloraSpaceError | None = None
    settings_error: QloraSpaceError | None = None
    may_start: bool = True  # False for nobody signed in, on a Space

    @property
    def error(self) -> QloraSpaceError | None:
        return self.data_error or self.base_error or self.settings_error


def sources_of(values: Mapping[str, Any]) -> tuple[str, str]:
    """Dataset and base, as the form names them."""
    dataset, base = (str(values[name] or "").strip() for name in ("dataset", "base"))
    return dataset, base


def request_from(actions: Actions, values: Mapping[str, Any]) -> TrainingRequest:
    """The form's or the API's values as a request. Raises QloraSpaceError."""
    known = dict(values)
    if "dataset" in known:
        known["dataset"] = dataset_source(actions, str(known["dataset"] or "").strip())
    if "base" in known:
        known["base"] = base_source(actions.settings, str(known["base"] or "").strip())
    return parse_request(known)


def examine(actions: Actions, values: Mapping[str, Any], before: Draft) -> Draft:
    """Always plan; inspect only if a value that the inspection depends on has changed."""
    draft = Draft(sources_of(values), may_start=actions.may_start)
    dataset, base = draft.sources
    if not base:
        return replace(draft, base_error=ModelError("Choose a base"))
    try:
        draft = replace(draft, request=request_from(actions, values))
    except QloraSpaceError as error:
        return _refused(draft, error, before)
    assert draft.request is not None
    if not dataset:
        missing = replace(draft, data_error=DatasetError("Choose a dataset"))
        return _with_base(actions, missing)
    try:
        draft = replace(draft, inspection=_inspection(actions, draft.request, before))
    except Superseded as error:  # nobody waits for this one
        return _unread(draft, error)
    except Exception as error:
        return _with_base(actions, _unread(draft, as_qlora_space_error(error)))
    return _planned(actions, draft)


def _refused(draft: Draft, error: QloraSpaceError, before: Draft) -> Draft:
    """A value that no request may have. What is known of unchanged data stays."""
    failed = _failed(draft, error)
    if before.sources != draft.sources or failed.settings_error is None:
        return failed
    return replace(failed, request=before.request, base=before.base, inspection=before.inspection)


def _unread(draft: Draft, error: QloraSpaceError) -> Draft:
    """The rows could not be read: most often for the data's sake, else for the base's."""
    if isinstance(error, ModelError):
        return replace(draft, base_error=error)
    return replace(draft, data_error=error)


def _failed(draft: Draft, error: QloraSpaceError) -> Draft:
    """With the error in the section that it is about."""
    match error:
        case DatasetError():
            return replace(draft, data_error=error)
        case ModelError():
            return replace(draft, base_error=error)
        case _:
            return replace(draft, settings_error=error)


def _with_base(actions: Actions, draft: Draft) -> Draft:
    """Without a plan, the base is shown all the same, or is the reason."""
    assert draft.request is not None
    try:
        return replace(draft, base=actions.base_facts(draft.request))
    except Exception as error:
        base_error = as_qlora_space_error(error)
    is_reason = str(base_error) == str(draft.data_error)  # the base is read before the data
    data_error = None if is_reason else draft.data_error
    return replace(draft, base_error=base_error, data_error=data_error)


def _planned(actions: Actions, draft: Draft) -> Draft:
    assert draft.request is not None
    try:
        plan = actions.plan(draft.request)
        quick = _quick_look(actions, draft.request, plan)
        quality = tuple(actions.quality(plan.base.sha))
    except Exception as error:
        return _with_base(actions, _failed(draft, as_qlora_space_error(error)))
    return replace(draft, base=plan.base, plan=plan, quick=quick, quality=quality)


def _quick_look(actions: Actions, request: TrainingRequest, plan: Plan) -> Plan | None:
    """The same run with the preset that ends early; None where nobody would wait for the whole one, or it saves less
    than half."""
    if plan.hardware.device != "cpu" or plan.estimate.seconds < _LONG_SECONDS:
        return None
    quick = actions.plan(request.model_copy(update={"preset": Preset.QUICK}))
    return quick if quick.estimate.seconds < plan.estimate.seconds / 2 else None


def is_inspected(actions: Actions, values: Mapping[str, Any], before: Draft) -> bool:
    """Whether the last inspection still holds, so that nothing slow will happen."""
    try:
        request = request_from(actions, values)
    except QloraSpaceError:
        return True
    return (
        before.request is not None
        and before.inspection is not None
        and _same_data(before.request, request)
    )


def _inspection(actions: Actions, request: TrainingRequest, before: Draft) -> Inspection:
    known = before.inspection
    if before.request and known and _same_data(before.request, request):
        return known
    return actions.inspect(request)


def _same_data(one: TrainingRequest, other: TrainingRequest) -> bool:
    return seen_by_inspection(one) == seen_by_inspection(other)


def readiness(draft: Draft, busy_name: str = "") -> tuple[str, bool]:
    """Label of the Start button, and whether it may be pressed. `busy_name`: the run that trains now."""
    if not draft.may_start:
        return SIGN_IN, False
    if draft.error is not None:
        return _what_to_fix(draft), False
    if draft.inspection is None or draft.plan is None:
        return CHECKING, False
    if errors := draft.inspection.errors:
        decision = _DECISIONS.get(errors[0].code) if len(errors) == 1 else None
        return decision or f"Fix {counted(len(errors), 'error')} in the data", False
    if draft.plan.publishing and draft.plan.publishing.problem:
        return "Publishing would fail: see the plan", False
    estimate, free = draft.plan.estimate, draft.plan.hardware.free_gib
    if not estimate.fits:
        return f"Does not fit: {gib(estimate.least_gib)} needed, {gib(free)} free", False
    if job := draft.plan.offer:
        return f"Start a job: about {price(max(job.usd, 0.01))}", True
    if busy_name:
        return f"Start after “{busy_name[:40]}”", True
    return START, True


def _what_to_fix(draft: Draft) -> str:
    error = draft.error
    assert error is not None
    if error.what.startswith("Choose "):
        return error.what
    if isinstance(error, HubError):
        return "Can't reach the Hub"
    if draft.settings_error is error:
        return "Correct the settings"
    return "Fix the dataset" if draft.data_error is error else "Fix the base"
