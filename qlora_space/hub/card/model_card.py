"""The model card: what the adapter is, what training changed, every setting, and how to load it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from qlora_space.core.errors import RequestError
from qlora_space.core.events import QualityPoint
from qlora_space.core.proof import Proof
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import perplexity
from qlora_space.hub.card.escape import block, inline
from qlora_space.hub.card.how_to_load import how_to_load
from qlora_space.hub.card.loss_chart import CHART_FILE, LossPoint
from qlora_space.hub.connection import is_repo_id
from qlora_space.plan import Plan
from qlora_space.runs.report import Measure, Report, Scores
from qlora_space.runs.verdict import measure_name, measured_on, points_of

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 40
_TABLE_POINTS = 10
_MAX_ANSWERS = 4
_LICENSE = re.compile(r"[A-Za-z0-9.+_-]{1,60}")
_EXPORTED = (
    " It is exported for the 16-bit base: the repair of the low-bit base that it was initialized with is taken out, "
    "which doubles the rank that it was trained with. All figures below were measured on the low-bit base."
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class AtStep:
    """A checkpoint, with the held-out loss at its step in nats per token if it was measured."""

    step: int
    heldout_loss: float | None = None


def model_card(  # noqa: PLR0913 - the parts of one card
    plan: Plan,
    report: Report | None,
    request: TrainingRequest,
    losses: Sequence[LossPoint],
    repo: str,
    *,
    for_16_bit: bool = False,
    with_base: bool = False,
    checkpoint: AtStep | None = None,
    has_chart: bool = False,
    proof: Proof | None = None,
) -> str:
    """README.md of the published adapter.

    `losses` is the training loss by step, in nats per token. `for_16_bit`: the repair of the low-bit base was taken
    out of the adapter. `with_base`: the packed base is published beside the adapter. `checkpoint`: it is published
    instead of the adapter that the run made. `has_chart`: the picture of loss_chart.py is published too. `proof`: of
    the commit before, which had the same adapter.
    Raises RequestError if `repo` is not the name of a repository.
    """
    if not is_repo_id(repo):
        raise RequestError(f"{repo[:100]!r} is not the name of a repository.", "Write owner/name.")
    is_as_trained = not for_16_bit and checkpoint is None
    parts = [
        f"---\n{_front_matter(plan, request, report if is_as_trained else None)}\n---",
        f"# {inline(plan.name)}",
        _introduction(plan, request)
        + (_EXPORTED if for_16_bit else "")
        + _of_step(checkpoint, report),
        before_and_after(report),
        _gate(plan, report),
        _loss_curve(losses, has_chart),
        how_to_load(plan, repo, for_16_bit=for_16_bit, with_base=with_base),
        f"## Proof\n\n{proof.in_words()}" if proof is not None and proof.is_proved else "",
        _settings(plan),
        _data(plan, request),
        _answers(plan, report),
        limits(plan, report),
        _versions(report, is_as_trained),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(plan: Plan, request: TrainingRequest, report: Report | None) -> str:
    on_hub = plan.base.source == "hub"
    results = _eval_results(plan, report) if _is_hub_dataset(plan, request) else []
    data = ModelCardData(
        library_name="peft",
        base_model=plan.base.id if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        model_name=plan.name if results else None,
        eval_results=results or None,
        datasets=hub_datasets(plan, request),
        license=license_of(plan),
        pipeline_tag="text-generation",
        tags=["qlora", "peft", "lora", "qlora-space"],
    )
    return data.to_yaml()


def hub_datasets(plan: Plan, request: TrainingRequest) -> list[str] | None:
    """For a front matter; None: its data is not a dataset of the Hub."""
    return [plan.dataset.id] if _is_hub_dataset(plan, request) else None


def license_of(plan: Plan) -> str | None:
    """Of the base, for a front matter; None if it states none that could be one's name."""
    return plan.base.license if _LICENSE.fullmatch(plan.base.license) else None


def _eval_results(plan: Plan, report: Report | None) -> list[EvalResult]:
    """Of the adapter on the held-out rows, as the Hub's model-index has them. Files in .eval_results, which its
    leaderboards read, are for benchmarks that the Hub knows; held-out rows of a dataset are none."""
    if report is None or not plan.dataset.is_public:
        return []
    by_name = {scores.name: scores for scores in report.scores}
    loss = by_name["trained"].heldout_loss if "trained" in by_name else None
    found = [("loss", "held-out loss (nats per token)", loss), *map(_metric, report.measures)]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=plan.dataset.id,
            dataset_name=f"{plan.dataset.id} (held-out rows)",
            dataset_config=plan.dataset.config or None,
            dataset_split=plan.eval_split or plan.dataset.split,
            dataset_revision=plan.dataset.sha,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for kind, name, value in found
        if value is not None and math.isfinite(value)
    ]


def _metric(measure: Measure) -> tuple[str, str, float]:
    """Type, name and value."""
    name = f"{measure_name(measure)}, {measure.num_rows} held-out rows"
    return measure.name, name, measure.means[1]


def _is_hub_dataset(plan: Plan, request: TrainingRequest) -> bool:
    """The hash of a local file is no commit's, and a local folder was not requested by a Hub id."""
    facts = plan.dataset
    is_same = request.dataset == facts.id and "/" in facts.id and is_repo_id(facts.id)
    return is_same and _COMMIT.fullmatch(facts.sha) is not None


def base_name(plan: Plan) -> str:
    match plan.base.source:
        case "demo":
            return "the demo base that is built into qlora_space"
        case "local":
            return f"a local model ({inline(plan.base.architecture)})"
        case "hub":
            return f"[{inline(plan.base.id)}](https://huggingface.co/{plan.base.id})"


def dataset_name(plan: Plan, request: TrainingRequest) -> str:
    if _is_hub_dataset(plan, request):
        return f"[{inline(plan.dataset.id)}](https://huggingface.co/datasets/{plan.dataset.id})"
    # Only the last part: the author's folders are private.
    return inline(re.split(r"[/\\]", plan.dataset.id.rstrip("/\\"))[-1])


def _start_name(plan: Plan) -> str:
    """Of a folder only the last part; the id of a run says nothing to others."""
    if re.fullmatch(r"[0-9a-f]{32}", plan.adapter):
        return "an earlier run"
    is_hub_id = is_repo_id(plan.adapter)
    return inline(plan.adapter if is_hub_id else re.split(r"[/\\]", plan.adapter.rstrip("/\\"))[-1])


def _introduction(plan: Plan, request: TrainingRequest) -> str:
    method = "QLoRA" if plan.bits < 16 else "LoRA"
    return (
        f"A LoRA adapter for {base_name(plan)}, trained on {dataset_name(plan, request)} "
        f"with {method} at {plan.mean_width:g} bits per base weight, using qlora_space."
    )


def _of_step(checkpoint: AtStep | None, report: Report | None) -> str:
    if checkpoint is None:
        return ""
    loss = checkpoint.heldout_loss
    measured = f" (held-out loss {_number(loss)} nats per token)" if loss is not None else ""
    made = report.adapter_step if report else None
    after = f", after step {made:,}" if made is not None else ""
    return (
        f" It is the checkpoint after step {checkpoint.step:,}{measured}. The figures below are of the adapter that "
        f"the run made{after}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if unit == "share" else f"{value:.4g}"


def before_and_after(report: Report | None) -> str:
    if report is None or not report.scores:
        return ""
    rows = [_score_row(scores) for scores in report.scores]
    header = ["", "held-out loss", "held-out perplexity", "exact match", "general loss"]
    return (
        f"## Before and after\n\n{_table(header, rows)}\n\n"
        f"Loss in nats per token, lower is better, over {measured_on(report)}; exact "
        f"match over {report.num_exact_match_rows:,} answers, word for word, without sampling."
        f"{_change(report)}{_measures(report)}{_forgetting(report)}"
    )


def _change(report: Report) -> str:
    found = report.heldout_change
    if found is None:
        return ""
    return f" 95 % interval of the change of the loss, rows paired: {found.low:.4g} to {found.high:.4g}."


def _measures(report: Report) -> str:
    """Scores of answers, each with the rows it rests on and the interval of its change."""
    if not report.measures:
        return ""
    table = _measure_table("answers", report.measures)
    return (
        f"\n\n{table}\n\nThe same prompts for both, greedy; a hundred points are all answers right."
    )


def _forgetting(report: Report) -> str:
    if not report.forgetting:
        return ""
    table = _measure_table("general questions", report.forgetting)
    return f"\n\n{table}\n\nShort questions that have nothing to do with the data: fewer right ones were forgotten."


def _measure_table(title: str, measures: Sequence[Measure]) -> str:
    rows = [
        [inline(measure_name(m)), *map(_share, m.means), f"{m.num_rows:,}", _points(m)]
        for m in measures
    ]
    return _table([title, "base", "trained", "rows", "95 % interval of the change"], rows)


def _points(measure: Measure) -> str:
    return points_of(measure.change) if measure.change else "not enough rows"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _score_row(scores: Scores) -> list[str]:
    loss = scores.heldout_loss
    return [
        inline(scores.name),
        _number(loss),
        _number(perplexity(loss) if loss is not None else None),
        _number(scores.exact_match, "share"),
        _number(scores.general_loss),
    ]


def _loss_curve(losses: Sequence[LossPoint], has_chart: bool) -> str:
    points = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    rows = [[f"{step:,}", _number(loss)] for step, loss in _thinned(points, _TABLE_POINTS)]
    curve = _sparkline([loss for _, loss in _thinned(points, _SPARK_WIDTH)])
    picture = f"![Training and held-out loss by step]({CHART_FILE})" if has_chart else f"`{curve}`"
    return f"## Training loss\n\n{picture}\n\n{_table(['step', 'loss (nats/token)'], rows)}"


def _thinned(points: list[LossPoint], count: int) -> list[LossPoint]:
    """At most `count` evenly spaced points, the first and the last among them."""
    if len(points) <= count:
        return points
    last = len(points) - 1
    return [points[round(i * last / (count - 1))] for i in range(count)]


def _sparkline(values: list[float]) -> str:
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _gate(plan: Plan, report: Report | None) -> str:
    if report is None or not report.gate:
        return ""
    return f"## The base before training\n\n{_table(*gate_table(plan, report.gate))}"


def gate_table(plan: Plan, points: Sequence[QualityPoint]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the base at every stage before training, against its 16-bit original."""
    width = f"{plan.mean_width:g} bit"
    names = {
        "16 bit": "16 bit",
        "quantized": width,
        "start": f"{width}, {plan.init} initialization",
        "healed": f"{width}, {plan.init} initialization, healed",
    }
    rows = [[names[p.name], f"{p.ppl:.4g}", f"{p.kl:.3f}", f"{p.top1:.0%}"] for p in points]
    return ["base", "perplexity", "KL (nats/token)", "same next token"], rows


def _settings(plan: Plan) -> str:
    rows = [
        ("base", "bits", f"{plan.bits}", "bits per weight"),
        *(_low_bit_settings(plan) if plan.is_low_bit else ()),
        *(
            [("LoRA", "adapter", _start_name(plan), "training went on from")]
            if plan.adapter
            else ()
        ),
        ("LoRA", "r", f"{plan.r}", "rank"),
        *(
            [("LoRA", "expert_r", f"{plan.expert_r}", "rank on an expert")]
            if plan.base.num_experts
            else ()
        ),
        ("LoRA", "lora_alpha", f"{plan.lora_alpha}", f"scale {plan.lora_scale:.4g}"),
        ("LoRA", "target_modules", inline(plan.target_modules), "layers adapted"),
        *(("LoRA", name, "yes", "") for name in ("use_rslora", "use_dora") if getattr(plan, name)),
        ("LoRA", "lora_dropout", f"{plan.lora_dropout:g}", "share of inputs"),
        ("data", "max_length", f"{plan.max_length:,}", "tokens"),
        ("data", "packing", _yes_no(plan.packing), ""),
        ("data", "assistant_only_loss", _yes_no(plan.assistant_only_loss), ""),
        *(("optimization", *row) for row in _optimization_settings(plan)),
        ("hardware", "device", inline(plan.device_label), ""),
    ]
    table = _table(["part", "setting", "value", "unit"], rows)
    return f"## Settings\n\n{table}"


def _optimization_settings(plan: Plan) -> tuple[tuple[str, str, str], ...]:
    steps = "as many as the epochs need" if plan.max_steps < 0 else f"{plan.max_steps:,}"
    return (
        ("num_train_epochs", f"{plan.num_train_epochs:g}", "epochs"),
        ("max_steps", steps, "optimizer steps"),
        ("learning_rate", f"{plan.learning_rate:g}", ""),
        ("per_device_train_batch_size", f"{plan.per_device_train_batch_size}", "rows"),
        ("gradient_accumulation_steps", f"{plan.gradient_accumulation_steps}", "micro-batches"),
        ("num_processes", f"{plan.num_processes}", "GPUs"),
        ("lr_scheduler_type", plan.lr_scheduler_type, ""),
        ("warmup_steps", f"{plan.warmup_steps:g}", "steps; below 1 a share of all"),
        ("weight_decay", f"{plan.weight_decay:g}", ""),
        ("max_grad_norm", f"{plan.max_grad_norm:g}", "L2 norm"),
        ("optim", plan.optim, ""),
        *([("fp8", "yes", "base multiplied in e4m3")] if plan.fp8 else []),
        ("gradient_checkpointing", _yes_no(plan.gradient_checkpointing), ""),
        ("seed", f"{plan.seed}", ""),
    )


def _low_bit_settings(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    return (
        ("base", "group_size", f"{plan.group_size}", "weights per scale"),
        *([("base", "mean_bits", f"{plan.mean_bits:g}", "mixed")] if plan.mean_bits else ()),
        ("base", "calibrated", _yes_no(plan.calibrated), "quantized by the calibration text"),
        ("LoRA", "init", plan.init, "initial weights of the adapter"),
        ("LoRA", "heal", _yes_no(plan.heal), ""),
    )


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _data(plan: Plan, request: TrainingRequest) -> str:
    facts = plan.dataset
    rows = [
        ("dataset", dataset_name(plan, request)),
        ("revision", f"`{facts.sha[:40]}`" if facts.sha.isalnum() else "unknown"),
        ("configuration, split", f"{inline(facts.config) or 'default'}, {inline(facts.split)}"),
        ("format", inline(facts.format)),
        ("rows", f"{'' if facts.is_exact else 'about '}{facts.num_rows:,}"),
        ("rows used", f"{plan.max_rows:,}" if plan.max_rows else "all"),
        ("held-out rows", f"{plan.num_eval_rows:,}"),
        (
            "example length",
            f"{facts.lengths.p50:,} tokens (median), {facts.lengths.max:,} (longest)",
        ),
        ("licence", inline(facts.license) or "not stated"),
    ]
    return f"## Data\n\n{_table(['', ''], rows)}"


def _answers(plan: Plan, report: Report | None) -> str:
    """Rows of a dataset that not everybody may read are left out, in a private repository too: it may become public."""
    if report is None or not report.answers or not plan.dataset.is_public:
        return ""
    parts = ["## Answers to held-out prompts"]
    for answer in report.answers[:_MAX_ANSWERS]:
        parts += ["Prompt", block(answer.prompt), "Base", block(answer.base)]
        parts += ["With the adapter", block(answer.adapted), "Expected", block(answer.expected)]
    return "\n\n".join(parts)


def limits(plan: Plan, report: Report | None) -> str:
    lines = [
        "- It keeps the base model's knowledge, mistakes and biases; check its answers before relying on them.",
        "- On text unlike its training data it may be worse than the base.",
    ]
    if plan.bits < 16:
        lines.append(
            f"- It was trained on a {plan.bits}-bit base; on a base of another precision its answers may differ."
        )
    if report is not None and report.stopped_by_hand:
        lines.append(f"- Training was stopped by hand after {report.steps:,} steps.")
    if report is None:
        lines.append("- No figures were measured on held-out rows.")
    return "## Limits\n\n" + "\n".join(lines)


def _versions(report: Report | None, is_as_trained: bool) -> str:
    """`is_as_trained`: an exported adapter, or a checkpoint, has other tensors than the adapter of the run."""
    if report is None:
        return ""
    rows = [(inline(name), inline(version)) for name, version in sorted(report.versions.items())]
    summary = (
        f"{report.steps:,} steps, {report.trained_tokens:,} tokens, {report.train_seconds:,.0f} s of "
        f"training, {report.peak_gib:.2f} GiB at the peak."
    )
    if is_as_trained:
        summary += f" sha256 of its tensors (names and bytes, in order): `{inline(report.adapter_sha256)}`."
    table = f"\n\n{_table(['library', 'version'], rows)}" if rows else ""
    return f"## How it was made\n\n{summary}{table}"
