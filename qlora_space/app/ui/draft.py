"""What is known about the run that the form describes: inspected, planned, or what is in the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import expected
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
    trouble: QloraSpaceError | None = None


def requested(settings: Settings, values: Mapping[str, Any]) -> TrainingRequest:
    """The form's or the API's values as a request. Raises QloraSpaceError."""
    known = dict(values)
    if "dataset" in known:
        known["dataset"] = dataset_source(settings, str(known["dataset"] or "").strip())
    if "base" in known:
        known["base"] = base_source(settings, str(known["base"] or "").strip())
    return parse_request(known)


def examine(actions: Actions, values: Mapping[str, Any], token: str | None, before: Draft) -> Draft:
    """Inspect only if something that the data's look depends on is new; plan always."""
    if not str(values["dataset"] or "").strip():
        return Draft(trouble=DatasetError("Choose a dataset"))
    if not str(values["base"] or "").strip():
        return Draft(inspection=before.inspection, trouble=ModelError("Choose a base"))
    request = inspection = None
    try:
        request = requested(actions.settings, values)
        inspection = _inspection(actions, request, token, before)
        plan = actions.plan(request, token)
        quality = tuple(actions.quality(plan.base.sha))
    except Exception as error:
        return Draft(request, inspection, trouble=expected(error))
    return Draft(request, inspection, plan, quality)


def is_same_look(settings: Settings, values: Mapping[str, Any], before: Draft) -> bool:
    """Whether what is known of the data still holds, so that nothing slow will happen."""
    try:
        request = requested(settings, values)
    except QloraSpaceError:
        return True
    return (
        before.request is not None
        and before.inspection is not None
        and seen_by_inspection(before.request) == seen_by_inspection(request)
    )


def _inspection(
    actions: Actions, request: TrainingRequest, token: str | None, before: Draft
) -> Inspection:
    old = before.request and before.inspection and seen_by_inspection(before.request)
    if before.inspection and old == seen_by_inspection(request):
        return before.inspection
    return actions.inspect(request, token)


def readiness(draft: Draft, busy: str = "") -> tuple[str, bool]:
    """The words on the Start button, and whether it may be pressed. `busy`: what trains now."""
    if draft.trouble is not None:
        return _missing(draft.trouble), False
    if draft.inspection is None or draft.plan is None:
        return "Checking the data …", False
    if errors := draft.inspection.errors:
        return f"Fix {counted(len(errors), 'error')} in the data", False
    estimate, free = draft.plan.estimate, draft.plan.hardware.free_gib
    if not estimate.fits:
        return f"Does not fit: {gib(estimate.peak_gib)} needed, {gib(free)} free", False
    if busy:
        return f"Start after “{busy[:40]}”", True
    return START, True


def _missing(trouble: QloraSpaceError) -> str:
    if trouble.what.startswith("Choose "):
        return trouble.what
    where = {
        DatasetError: "Fix the dataset",
        ModelError: "Fix the base",
        HubError: "The Hub was not read",
    }
    return where.get(type(trouble), "Correct the settings")
