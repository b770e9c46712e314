"""The run that the form describes, as far as it is known: inspected and planned, or why it cannot be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import as_qlora_space_error
from qlora_space.app.ui.uploads import base_source, dataset_source
from qlora_space.core.errors import DatasetError, HubError, ModelError, QloraSpaceError
from qlora_space.core.inspection import Inspection
from qlora_space.core.request import TrainingRequest, parse_request, seen_by_inspection
from qlora_space.core.settings import Settings
from qlora_space.core.wording import counted, gib
from qlora_space.plan import Plan
from qlora_space.runs import Quality

START = "Start training"


@dataclass(frozen=True)
class Draft:
    """Lives in gr.State, on the server."""

    request: TrainingRequest | None = None
    inspection: Inspection | None = None
    plan: Plan | None = None
    quality: tuple[Quality, ...] = ()
    error: QloraSpaceError | None = None


def request_from(settings: Settings, values: Mapping[str, Any]) -> TrainingRequest:
    """The form's or the API's values as a request. Raises QloraSpaceError."""
    known = dict(values)
    if "dataset" in known:
        known["dataset"] = dataset_source(settings, str(known["dataset"] or "").strip())
    if "base" in known:
        known["base"] = base_source(settings, str(known["base"] or "").strip())
    return parse_request(known)


def examine(actions: Actions, values: Mapping[str, Any], token: str | None, before: Draft) -> Draft:
    """Always plan; inspect only if a value that the inspection depends on has changed."""
    if not str(values["dataset"] or "").strip():
        return Draft(error=DatasetError("Choose a dataset"))
    if not str(values["base"] or "").strip():
        return Draft(inspection=before.inspection, error=ModelError("Choose a base"))
    request = inspection = None
    try:
        request = request_from(actions.settings, values)
        inspection = _inspection(actions, request, token, before)
        plan = actions.plan(request, token)
        quality = tuple(actions.quality(plan.base.sha))
    except Exception as error:
        return Draft(request, inspection, error=as_qlora_space_error(error))
    return Draft(request, inspection, plan, quality)


def is_inspected(settings: Settings, values: Mapping[str, Any], before: Draft) -> bool:
    """Whether the last inspection still holds, so that nothing slow will happen."""
    try:
        request = request_from(settings, values)
    except QloraSpaceError:
        return True
    return (
        before.request is not None
        and before.inspection is not None
        and _same_data(before.request, request)
    )


def _inspection(
    actions: Actions, request: TrainingRequest, token: str | None, before: Draft
) -> Inspection:
    known = before.inspection
    if before.request and known and _same_data(before.request, request):
        return known
    return actions.inspect(request, token)


def _same_data(one: TrainingRequest, other: TrainingRequest) -> bool:
    return seen_by_inspection(one) == seen_by_inspection(other)


def readiness(draft: Draft, busy_name: str = "") -> tuple[str, bool]:
    """Label of the Start button, and whether it may be pressed. `busy_name`: the run that trains now."""
    if draft.error is not None:
        return _what_to_fix(draft.error), False
    if draft.inspection is None or draft.plan is None:
        return "Checking the data …", False
    if errors := draft.inspection.errors:
        return f"Fix {counted(len(errors), 'error')} in the data", False
    estimate, free = draft.plan.estimate, draft.plan.hardware.free_gib
    if not estimate.fits:
        return f"Does not fit: {gib(estimate.peak_gib)} needed, {gib(free)} free", False
    if busy_name:
        return f"Start after “{busy_name[:40]}”", True
    return START, True


def _what_to_fix(error: QloraSpaceError) -> str:
    if error.what.startswith("Choose "):
        return error.what
    labels = {
        DatasetError: "Fix the dataset",
        ModelError: "Fix the base",
        HubError: "Can't reach the Hub",
    }
    return labels.get(type(error), "Correct the settings")
