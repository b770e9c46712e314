"""The checklist, what was published with its proof, and a push that is still to be made."""

from collections.abc import Sequence

from qlora_space.app.ui.checklist import Check
from qlora_space.app.ui.links import copy_link, link_to
from qlora_space.app.ui.render.html import icon, notice, table, text
from qlora_space.core.export import ModelFormat
from qlora_space.core.proof import Proof
from qlora_space.core.wording import age, rough_duration, without_folders
from qlora_space.hub import Target
from qlora_space.runs import Publication, RunFolder, UnsentPush
from qlora_space.runs.proofs import proof_of

_STATES = {"ok": "Ready", "missing": "Missing", "asking": "Not known yet", "note": "To be read"}
EXPORT_NAMES: dict[ModelFormat, str] = {
    "merged": "16-bit model",
    "merged-nf4": "4-bit model",
    "merged-gptq": "GPTQ model",
    "gguf": "GGUF file",
    "gguf-adapter": "GGUF adapter",
}
_NAMES: dict[str, str] = {"adapter": "adapter", "demo-space": "demo", **EXPORT_NAMES}
_STAYED_PRIVATE = "Still private: your token may not make it public. Do that on its page."
_PICTURES = {"ok": "done", "missing": "missing", "asking": "working", "note": "info"}


def render_checklist(checks: Sequence[Check]) -> str:
    items = "".join(
        f'<li class="{c.state}">{icon(_PICTURES[c.state])}'
        f'<span class="sr">{_STATES[c.state]}: </span>{text(c.text)}</li>'
        for c in checks
    )
    return f'<ul class="checklist">{items}</ul>'


def unsent(push: UnsentPush | None, now: float, is_being_sent: bool) -> str:
    """A push that was begun and is not done, at Unix time `now`; '' without one."""
    if push is None:
        return ""
    repo = push.request.repo
    if is_being_sent:
        return notice("info", f"Sending the {_NAMES[push.request.what]} to {repo} …")
    why = without_folders(push.why) or "The app was stopped while it was being sent."
    if push.is_refused:
        return notice("error", f"Not published to {repo}.", why)
    left = push.next_at - now
    when = f"in {rough_duration(left)}" if left > 0 else "in a moment"
    return notice("warning", f"Not published to {repo} yet. It is tried again {when}.", why)


def made_line(done: Publication) -> str:
    """Where an export or a demo Space is, and what its owner should know."""
    is_space = done.what == "demo-space"
    what = "Demo Space" if is_space else f"{_NAMES[done.what]} published"
    heading = f"{what} {age(done.time)}"
    notes = list(done.notes)
    notes += ["It builds for some minutes after each change."] if is_space else []
    notes += [_STAYED_PRIVATE] if done.stayed_private else []
    return (
        f'<p class="published-line">{icon("done")}{text(heading)}: '
        f'<a href="{text(done.url)}" target="_blank" rel="noopener">{text(done.repo)}</a></p>'
        + "".join(f'<p class="hint">{text(each)}</p>' for each in notes)
    )


def published_line(run: RunFolder) -> str:
    """For the page of the run: where its adapter was published last; '' if nowhere."""
    done = run.publications()
    if not done:
        return ""
    last, places = done[-1], {p.repo for p in done}
    others = f", and in {len(places) - 1} other repositories" if len(places) > 2 else ""
    others = ", and in another repository" if len(places) == 2 else others
    return (
        f'<p class="published-line">{_heading(last, proof_of(run, last.commit))}: '
        f'<a href="{text(last.url)}" target="_blank" rel="noopener">{text(last.repo)}</a>{others}'
        f"{copy_link(link_to(last))}</p>"
    )


def _heading(last: Publication, found: Proof | None) -> str:
    """Files that arrived are not a publication where a fresh download is found to be something else."""
    if found is not None and not found.is_proved:
        return f"{icon('error')}Sent {age(last.time)}, but it is not what was trained"
    return f"{icon('done')}Published and {'proved' if found else 'verified'} {age(last.time)}"


def proof(done: Sequence[Publication], target: Target | None, found: Proof | None = None) -> str:
    """What was published last, whether it is there now, and what was published before. `found`: of a fresh download."""
    if not done:
        return ""
    *earlier, last = done
    rows = [
        ("Commit", last.commit[:12]),
        ("Adapter", _which(last)),
        ("Files", f"all {last.num_files} are the ones on this machine, by hash"),
        ("Repository", _how_published(last)),
        ("On the Hub now", _whether_there(target)),
    ]
    others = [
        (each.repo, age(each.time), each.commit[:12], _which(each)) for each in reversed(earlier)
    ]
    before = table(
        ("Published before", "When", "Commit", "Adapter"), others, "Earlier publications"
    )
    return (
        f'<section class="result"><h3>{_heading(last, found)}</h3>'
        f'<p><a href="{text(last.url)}" target="_blank" rel="noopener">{text(last.repo)}</a> '
        f"{copy_link(link_to(last))}</p>"
        f"{table(('What', 'Found on the Hub'), rows, 'Proof')}{before if others else ''}</section>"
    )


def _which(publication: Publication) -> str:
    return "the run's" if publication.step is None else f"checkpoint of step {publication.step:,}"


def _how_published(last: Publication) -> str:
    if last.stayed_private:
        return "Created for this adapter; still private, your token may not make it public: do that on its page"
    if last.created:
        return "Created for this adapter"
    return "Existing repository: 1 commit added"


def _whether_there(target: Target | None) -> str:
    if target is None:
        return "not checked: can't reach the Hub"
    if target.state == "free":
        return "no: it was deleted, renamed, or this account cannot see it"
    if target.state == "foreign":
        return "no: the files are not from this run any more"
    return f"yes, {'private' if target.is_private else 'public'}"
