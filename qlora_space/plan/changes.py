"""What was changed from one run to another, compared as planned: what was chosen for the user counts too."""

from qlora_space.plan.plan import Plan

_NOT_SETTINGS = {"name", "hardware", "choices", "estimate", "dataset", "base"}


def settings_of(plan: Plan) -> dict[str, str]:
    """Every setting as a word, by the name of its field."""
    values = plan.model_dump(mode="json", exclude=_NOT_SETTINGS)
    places = {"dataset": plan.dataset.id, "base": plan.base.id, "format": plan.dataset.format}
    return places | {name: _word(value) for name, value in values.items()}


def differences(before: Plan, after: Plan) -> list[tuple[str, str, str]]:
    """(field, value before, value after) of the settings that differ, in the order of the plan."""
    old, new = settings_of(before), settings_of(after)
    return [(name, old[name], new[name]) for name in new if old[name] != new[name]]


def _word(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={column}" for key, column in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
