"""In what runs differ, compared as planned: what was chosen for the user counts too."""

from collections.abc import Sequence

from qlora_space.plan.plan import Plan

_NOT_SETTINGS = {"name", "hardware", "choices", "estimate", "dataset", "base"}
_SHOWN_SHA = 12


def settings_of(plan: Plan) -> dict[str, str]:
    """Every setting as a word, by the name of its field."""
    values = plan.model_dump(mode="json", exclude=_NOT_SETTINGS)
    values["max_steps"] = plan.max_steps if plan.max_steps > 0 else "as many as the epochs need"
    places = {
        "dataset": plan.dataset.id,
        "dataset_revision": plan.dataset.sha[:_SHOWN_SHA],
        "format": plan.dataset.format,
        "base": plan.base.id,
        "base_revision": plan.base.sha[:_SHOWN_SHA],
    }
    return places | {name: _word(value) for name, value in values.items()}


def differences(plans: Sequence[Plan]) -> list[tuple[str, tuple[str, ...]]]:
    """(field, its value in each plan) of the settings that are not the same in all, in the order of a plan."""
    every = [settings_of(plan) for plan in plans]
    found = [(name, tuple(one[name] for one in every)) for name in every[0]]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{key}={column}" for key, column in value.items())
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
