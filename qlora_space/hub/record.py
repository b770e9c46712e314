"""qlora_space.json of a published adapter: all that a fork of the run needs, and what was made of it.

It is public: of sources that are folders of its author only the last part is in it, and no rows of a private dataset.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from qlora_space import __version__
from qlora_space.core.comparison import BaseRecipe
from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan
from qlora_space.runs import PushRequest, Report, RunFolder

_TEMPLATE, _TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"


class Made(BaseModel):
    """What the run was made of, by hashes, and what it took. '' and None: not known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    app_version: str
    dataset_sha: str = Field(description="Commit on the Hub, or a hash of the file.")
    base_sha: str = Field(description="Commit on the Hub, or a hash of the folder.")
    prepared_sha256: dict[str, str] = Field(description="Of the tokenized, packed rows, by file.")
    tokenizer_sha256: str
    template_sha256: str = Field(description="Of the chat template's text.")
    seed: int
    hardware: str
    steps: int
    seconds: float = Field(description="From the start of the run to its report.")
    cost_usd: float | None = Field(description="At the price of the hardware, where it has one.")
    checkpoint_step: int | None = Field(description="None: the adapter that the run made.")


def record_json(
    run: RunFolder, request: TrainingRequest, plan: Plan, report: Report, push: PushRequest
) -> str:
    """A JSON object: request, plan, report, base (how to load it) and made."""
    if not plan.dataset.is_public:
        report = report.model_copy(update={"answers": ()})
    record: dict[str, BaseModel] = {
        "request": request.model_copy(
            update={"mirror_to": None, "max_usd": None, "hub_model_id": None}
        ),
        "plan": plan.model_copy(update={"publishing": None, "places": ()}),
        "report": report,
        "base": base_recipe(plan, push),
        "made": _made(run, plan, report, push),
    }
    text = json.dumps(
        {name: value.model_dump(mode="json") for name, value in record.items()}, indent=1
    )
    sources = (request.dataset, request.base, request.adapter, plan.dataset.id, plan.base.id)
    for source in sources:
        if source and Path(source).is_absolute():
            text = text.replace(json.dumps(source), json.dumps(Path(source).name))
    return text


def base_recipe(plan: Plan, push: PushRequest) -> BaseRecipe:
    """How the base of the published adapter is loaded."""
    return BaseRecipe(
        bits=16 if push.for_16_bit else plan.bits,
        group_size=plan.group_size,
        is_packed=plan.is_low_bit and not push.for_16_bit,
        comes_along=push.with_base,
    )


def _made(run: RunFolder, plan: Plan, report: Report, push: PushRequest) -> Made:
    manifest = _json(run.data_folder / "manifest.json")
    price = plan.hardware.price_per_hour_usd
    return Made(
        app_version=__version__,
        dataset_sha=plan.dataset.sha,
        base_sha=plan.base.sha,
        prepared_sha256=manifest.get("files", {}),
        tokenizer_sha256=manifest.get("tokenizer_sha256", ""),
        template_sha256=_template_sha256(run.adapter_folder),
        seed=plan.seed,
        hardware=plan.device_label,
        steps=report.steps,
        seconds=report.total_seconds,
        cost_usd=round(report.total_seconds / 3600 * price, 4) if price else None,
        checkpoint_step=push.step,
    )


def _template_sha256(folder: Path) -> str:
    file = folder / _TEMPLATE
    text = file.read_text() if file.is_file() else None
    text = text or _json(folder / _TOKENIZER_CONFIG).get("chat_template")
    return hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else ""


def _json(file: Path) -> dict:
    """Of a file of ours; {} without it."""
    return json.loads(file.read_bytes()) if file.is_file() else {}
