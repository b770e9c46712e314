"""What must be true before an adapter is uploaded, as far as it is known."""

from dataclasses import dataclass, replace
from typing import Literal

from qlora_space.core.errors import HubError
from qlora_space.hub import Target, is_repo_name
from qlora_space.hub.account import Account
from qlora_space.hub.licenses import terms_of
from qlora_space.runs import RunFolder

_OWN_LICENSE = "apache-2.0"  # of the embedded base


@dataclass(frozen=True)
class Check:
    """One line of the checklist. A note leaves the button as it is."""

    state: Literal["ok", "missing", "asking", "note"]
    text: str


@dataclass(frozen=True)
class Destination:
    """Where an adapter is to go, and what is known of it. `replaces`: what was changed there may be overwritten."""

    repo: str
    account: Account | None = None
    target: Target | None = None  # None: not asked
    error: HubError | None = None
    replaces: bool = False

    @property
    def is_mine(self) -> bool:
        account = self.account
        return account is not None and (self._owner in account.owners or self.repo in account.repos)

    @property
    def is_worth_asking(self) -> bool:
        """Whether everything that is known without the Hub's answer about the repository is right."""
        return self.is_mine and is_repo_name(self.repo)

    @property
    def is_new(self) -> bool:
        return self.target is None or self.target.state == "free"

    @property
    def _owner(self) -> str:
        return self.repo.partition("/")[0]


def checklist(to: Destination, run: RunFolder, is_space: bool) -> list[Check]:
    """What must be true before anything is uploaded. What cannot be known yet is not claimed."""
    of_run = [_license_check(run), _adapter_check(run)]
    if to.error is not None:
        return [Check("missing", "Can't reach the Hub"), *of_run]
    if to.account is None:
        return [Check("missing", _how_to_sign_in(is_space)), *of_run]
    write = (
        "Your token has write access" if to.account.can_write else "Your token needs write access"
    )
    return [
        Check("ok", f"Signed in as {to.account.name}"),
        Check("ok" if to.account.can_write else "missing", write),
        *_repo_checks(to, to.account),
        *of_run,
    ]


def is_complete(checks: list[Check]) -> bool:
    return all(check.state in ("ok", "note") for check in checks)


def begun(to: Destination, run: RunFolder) -> Destination:
    """A repository that an earlier try made for this run, and that holds nothing yet, counts as a new one."""
    unsent = run.unsent_push()
    is_begun = (
        unsent is not None
        and unsent.was_created
        and (unsent.request.repo, unsent.request.what) == (to.repo, "adapter")
    )
    if is_begun and to.target is not None and to.target.state == "ours":
        return replace(to, target=Target("free"))
    return to


def _license_check(run: RunFolder) -> Check:
    base = run.plan().base
    terms = terms_of(base.license or (_OWN_LICENSE if base.source == "demo" else ""))
    return Check("ok" if terms.kind == "allows" else "note", terms.text)


def _how_to_sign_in(is_space: bool) -> str:
    if is_space:
        return "Not signed in: use “Sign in” at the top of the page"
    return "Not signed in: run “hf auth login” in a terminal on this machine, then reload this page"


def _repo_checks(to: Destination, account: Account) -> list[Check]:
    name = to.repo.partition("/")[2]
    if not name:
        return [Check("missing", "Enter a repository name")]
    if not to.is_mine:
        owners = ", ".join((*account.owners, *account.repos)) or account.name
        return [Check("missing", f"Choose a name under: {owners}")]
    if not is_repo_name(to.repo):
        return [Check("missing", f"Not a valid repository name: {name}")]
    return [_target_check(to.repo, to.target), *_changed_checks(to)]


def _target_check(repo: str, target: Target | None) -> Check:
    if target is None:
        return Check("asking", f"Asking the Hub about {repo} …")
    who_reads = "private" if target.is_private else "public: everyone can read it"
    match target.state:
        case "free":
            return Check("ok", f"New repository: {repo}")
        case "ours":
            return Check("ok", f"Existing repository ({who_reads}): 1 commit will be added")
        case "foreign":
            return Check("missing", f"Name taken: {repo} holds files that are not from this run")
    return Check("missing", f"Your token has no write access to {repo}")


def _changed_checks(to: Destination) -> list[Check]:
    """What somebody changed there since this run was published: a person decides."""
    if to.target is None or not to.target.changed:
        return []
    names = ", ".join(to.target.changed)
    if to.replaces:
        return [Check("note", f"Changed on the Hub since, and will be replaced: {names}")]
    return [Check("missing", f"Changed on the Hub since: {names}. Replace, or choose another name")]


def _adapter_check(run: RunFolder) -> Check:
    return Check("ok", "Adapter ready") if run.has_adapter else Check("missing", "No adapter yet")
