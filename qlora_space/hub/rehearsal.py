"""Publishing rehearsed before training: the owner, the name, what is there, and whether this token may write."""

import re

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from qlora_space.core.errors import HubError, HubUnavailable
from qlora_space.core.rehearsal import Rehearsal
from qlora_space.hub.account import Account, full_name_to_publish
from qlora_space.hub.connection import CLIENT_ERRORS, hub_api, hub_error
from qlora_space.hub.target import Remote, read_remote
from qlora_space.runs import RunFolder
from qlora_space.runs.publication import What

_OF_NO_RUN = "0" * 32  # a new run has published nothing yet
_MOST_NAME_CHARS = 60
_TRIED_NAMES = range(2, 7)
_ENDINGS: dict[What, str] = {
    "demo-space": "-demo",
    "merged": "-merged",
    "merged-nf4": "-nf4",
    "merged-gptq": "-gptq",
    "gguf": "-gguf",
    "gguf-adapter": "-lora-gguf",
}


def rehearse(repo: str, private: bool, token: str | None) -> Rehearsal:
    """What a new run would meet there; nothing is written. Raises HubError where that cannot be known."""
    try:
        return _with_name(hub_api(token), full_name_to_publish(repo, token), private)
    except HubUnavailable:
        raise
    except HubError as error:
        return Rehearsal(
            repo=repo, state="refused", is_private=private, problem=error.what, fix=error.hint
        )
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{repo} could not be checked") from None


def _with_name(api: HfApi, name: str, private: bool) -> Rehearsal:
    remote = read_remote(api, name, _OF_NO_RUN)
    if remote is None:
        return Rehearsal(repo=name, state="new", is_private=private)
    problem, fix = _problem(api, name, remote, private)
    state = "refused" if problem else "empty"
    return Rehearsal(repo=name, state=state, is_private=remote.is_private, problem=problem, fix=fix)


def _problem(api: HfApi, name: str, remote: Remote, private: bool) -> tuple[str, str]:
    """What a person would have to change, and how; ('', '') if nothing."""
    if remote.foreign:
        free = _free_name(api, name)
        other = f", for example {free}, which is free" if free else ""
        return f"{name} holds files of something else.", f"Choose another name{other}."
    if private and not remote.is_private:
        return (
            f"{name} exists and everyone can read it, but the adapter is to be private.",
            "Choose another name, or make that repository private first.",
        )
    return "", ""


def _free_name(api: HfApi, name: str) -> str:
    """'ada/tea-2', or the next one that nothing has; '' if many are taken."""
    for number in _TRIED_NAMES:
        other = f"{name}-{number}"
        try:
            api.model_info(other)
        except RepositoryNotFoundError:
            return other
    return ""


def suggested_repos(account: Account | None, base: str, dataset: str) -> tuple[str, ...]:
    """A name made of base and dataset under each owner that the token may write to, the account first."""
    return named_repos(account, base.rpartition("/")[2], dataset.rpartition("/")[2])


def named_repos(account: Account | None, *words: str) -> tuple[str, ...]:
    """'owner/words-qlora' for each owner that the token may write to; no words: 'owner/adapter-qlora'."""
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    slug = name[:_MOST_NAME_CHARS].strip("-") or "adapter"
    owners = account.owners if account and account.can_write else ()
    return tuple(f"{owner}/{slug}-qlora" for owner in owners)


def suggested_repo(account: Account | None, run: RunFolder, what: What = "adapter") -> str:
    """Where that is to be sent again or was published last, else 'user/run-name-slug', or the adapter's name and what
    it is; '' while nobody is signed in."""
    unsent = run.unsent_push()
    if unsent and unsent.request.what == what:
        return unsent.request.repo
    if done := [each for each in run.all_publications() if each.what == what]:
        return done[-1].repo
    if what != "adapter":
        adapter = suggested_repo(account, run)
        return f"{adapter}{_ENDINGS[what]}" if adapter else ""
    return next(iter(named_repos(account, run.name())), "")
