"""Where a run can run, as HTML: the places on the card of a plan, and the job on a run's page."""

from collections.abc import Sequence

from qlora_space.app.ui.render.data import fix_button
from qlora_space.app.ui.render.html import icon, notice, text
from qlora_space.core.inspection import Change
from qlora_space.core.places import PlaceOffer
from qlora_space.core.wording import duration, gib, price, rough_duration
from qlora_space.plan import Plan, cheapest
from qlora_space.runs.job import JobRecord

_MOST_JOBS = 3
_STAGES = {
    "SCHEDULING": "waits for its machine",
    "RUNNING": "is running",
    "COMPLETED": "is over",
    "CANCELED": "was cancelled",
    "ERROR": "ended with an error",
    "DELETED": "was deleted",
}


def places(plan: Plan) -> str:
    """Each place with memory, time and price, and a button to choose it; '' where there is this machine alone."""
    shown = _shown(plan)
    if len(shown) < 2:
        return ""
    best = cheapest(plan.places)
    items = "".join(_place(offer, plan, is_best=offer is best) for offer in shown)
    return (
        '<details class="places" open><summary>Where it can run</summary>'
        f"{_short_of_time(plan)}<ul>{items}</ul>"
        '<p class="hint">Jobs run on machines of HF Jobs and are billed to your account by the minute, at the prices '
        "of today. They end before they cost more than “at most”, and what was learned is kept.</p></details>"
    )


def _shown(plan: Plan) -> list[PlaceOffer]:
    """This machine, the one that was chosen, and the cheapest jobs; the largest where none can take it."""
    here = [offer for offer in plan.places if offer.kind != "job"]
    jobs = [offer for offer in plan.places if offer.kind == "job"]
    can = [offer for offer in jobs if offer.can_run][:_MOST_JOBS]
    largest = sorted(jobs, key=lambda offer: offer.hardware.free_gib)[-1:]
    named = [o for o in jobs if _is_chosen(o, plan)]
    return [*here, *[offer for offer in jobs if offer in (*(can or largest), *named)]]


def _is_chosen(offer: PlaceOffer, plan: Plan) -> bool:
    if plan.offer is None:
        return offer.kind == "here"
    return (offer.kind, offer.flavor) == (plan.offer.kind, plan.offer.flavor)


def _place(offer: PlaceOffer, plan: Plan, *, is_best: bool) -> str:
    chosen = _is_chosen(offer, plan)
    fits = f"{gib(offer.least_gib)} of {gib(offer.hardware.free_gib)}"
    mark = icon("done" if offer.can_run else "error")
    why = "Fits" if offer.can_run else offer.problem[:1].upper() + offer.problem[1:]
    verdict = f"{why}, {fits}" if offer.can_run else why or f"Does not fit: {fits}"
    note = "<small>cheapest that fits</small>" if is_best else ""
    cost = f"{rough_duration(offer.seconds)} · {_cost(offer)}"
    return (
        f'<li class="place {"fits" if offer.can_run else "over"}{" chosen" if chosen else ""}">'
        f"<div><b>{text(_name(offer))}</b>{note}</div>"
        f'<span class="verdict">{mark}{text(verdict)}</span>'
        f"<span>{text(cost)}</span>{_button(offer, chosen=chosen)}</li>"
    )


def _name(offer: PlaceOffer) -> str:
    if offer.kind == "job":
        return f"Job: {offer.label}"
    return f"{offer.label[:1].upper()}{offer.label[1:]}: {offer.hardware.name}"


def _cost(offer: PlaceOffer) -> str:
    if offer.kind == "zerogpu":
        return f"{offer.quota_minutes:.0f} min of your ZeroGPU time"
    if offer.kind == "job":
        return f"{_price(offer.usd)}, at most {_price(offer.most_usd)}"
    return f"about {price(offer.usd)}" if offer.usd else "free"


def _price(usd: float) -> str:
    return price(usd) if usd >= 0.005 else "under $0.01"


def _button(offer: PlaceOffer, *, chosen: bool) -> str:
    if chosen:
        return '<em class="is-chosen">Chosen</em>'
    if not offer.can_run:
        return ""
    value = f"job {offer.flavor}" if offer.kind == "job" else offer.kind
    return fix_button(Change(field="place", value=value), "Run it there")


def _short_of_time(plan: Plan) -> str:
    job = plan.offer
    if job is None or job.timeout_seconds >= job.seconds:
        return ""
    return notice(
        "warning",
        f"The job has {duration(job.timeout_seconds)}, less than is planned.",
        "It then saves and pauses; Resume goes on in a new job.",
    )


def smaller(plan: Plan, changes: Sequence[tuple[Change, str]]) -> str:
    """What would make a run fit that does not, each with a button."""
    if plan.estimate.fits:
        return ""
    if not changes:
        nowhere = not any(offer.can_run for offer in plan.places)
        return (
            notice("info", "No place takes this run.", "Choose a smaller base.") if nowhere else ""
        )
    buttons = "".join(fix_button(change, label) for change, label in changes)
    return f'<div class="smaller"><p>It would fit with one of these:</p>{buttons}</div>'


def job_line(job: JobRecord | None, now: float) -> str:
    """Under the head of a run that is or was in a job: machine, dollars, and the way to the job."""
    if job is None:
        return ""
    spent, until = job.usd(now), "in all" if job.is_over else "so far"
    so_far = f"{_price(spent) if spent else 'nothing'} {until}"
    most = job.usd_before + job.timeout_seconds / 3600 * job.usd_per_hour
    state = "is over" if job.is_over else _STAGES.get(job.stage, job.stage.lower())
    link = ""
    if job.url.startswith(("https://", "http://")):
        link = f' <a href="{text(job.url)}" target="_blank" rel="noopener">Job on the Hub</a>'
    words = f"Job on {job.label} {state} · {so_far}, at most {_price(most)}"
    return f'<p class="run-job">{icon("chip")}<span>{text(words)}</span>{link}</p>'
