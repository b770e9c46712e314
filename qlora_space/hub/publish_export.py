"""An export of a run goes to a repository of its own, by the same push as an adapter."""

import json

from qlora_space.core.errors import HubError, RunError
from qlora_space.core.export import EXPORT_FILE, Exported
from qlora_space.hub.adapter_files import ADAPTER_FILES, CARD_FILE
from qlora_space.hub.card.export_card import export_card
from qlora_space.hub.connection import explained_errors, hub_api, is_repo_id
from qlora_space.hub.download import RECORD_FILE
from qlora_space.hub.files import hashed
from qlora_space.hub.publish import Published, PushOptions, publish_files
from qlora_space.hub.record import record_json
from qlora_space.runs import PushRequest, Report, RunFolder


def export_to_publish(run: RunFolder, push: PushRequest) -> Exported:
    """The export that is asked for. Raises RunError if it is not there or is of another adapter than the run has now,
    HubError if it is not sound."""
    folder = run.exports_folder / push.what
    if not (folder / EXPORT_FILE).is_file():
        raise RunError(
            f"This run was not exported as {push.what}.", "Export it in that format first."
        )
    found = Exported.model_validate_json((folder / EXPORT_FILE).read_bytes())
    weights = run.adapter_folder / ADAPTER_FILES[0]
    missing = [name for name in found.files if not (folder / name).is_file()]
    if missing or weights.stat().st_mtime > (folder / EXPORT_FILE).stat().st_mtime:
        why = f"has no {missing[0]} any more" if missing else "is older than the run's adapter"
        raise RunError(f"The export as {push.what} {why}.", "Export the run again.")
    if found.agreement is not None and not found.agreement.is_finite:
        raise HubError(
            f"The export as {push.what} is not usable: its logits are no finite numbers.",
            "It is not published. Export the run again, or in another format.",
        )
    return found


def publish_export(
    run: RunFolder, push: PushRequest, report: Report, token: str | None, options: PushOptions
) -> Published:
    """`push.repo` has its owner. Raises RunError and HubError; Conflict."""
    exported = export_to_publish(run, push)
    plan, request = run.plan(), run.request()
    card = export_card(plan, report, request, exported, push.repo, _public_adapter(run, token))
    sources = {name: run.exports_folder / push.what / name for name in exported.files}
    files = [*(hashed(n, s) for n, s in sources.items()), hashed(CARD_FILE, card.encode())]
    record = json.loads(record_json(run, request, plan, report, push))
    record |= {
        "run_id": run.id,
        "what": push.what,
        "files": sorted(sources),
        "export": exported.model_dump(mode="json"),
    }
    files.append(hashed(RECORD_FILE, json.dumps(record, indent=1).encode()))
    return publish_files(tuple(files), push.what, push.repo, push.private, token, run.id, options)


def is_private(repo: str, token: str | None) -> bool:
    """Of a model's repository. Raises HubError if it is not there or the Hub does not answer."""
    with explained_errors(repo, HubError):
        return bool(hub_api(token).model_info(repo).private)


def _public_adapter(run: RunFolder, token: str | None) -> str:
    """Where the run's adapter was published last, if everybody can read it there: a card for all names nothing that
    is private."""
    last = next((p for p in reversed(run.publications()) if p.step is None), None)
    if last is None or not is_repo_id(last.repo):
        return ""
    try:
        return "" if is_private(last.repo, token) else last.repo
    except HubError:  # deleted since, or the Hub does not answer: the push itself says so
        return ""
