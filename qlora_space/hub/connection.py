"""One way to reach the Hub, and one way to explain what it refused.

Tokens are arguments and nothing else: None means anonymous, never a token found on this machine.
The client's exceptions hold the request with its headers, so none of them is kept as a cause.
"""

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id

from qlora_space.core.errors import (
    DiskFull,
    HubError,
    HubUnavailable,
    NotSignedIn,
    QloraSpaceError,
)
from qlora_space.core.wording import without_tokens

# httpx's HTTPError, or httpx2's since huggingface_hub 2: the parent of every transport error.
TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
CLIENT_ERRORS = (TransportError, OSError)
RETRY_STATUS = (408, 429, 500, 502, 503, 504)
_TIMEOUT_SECONDS = 120.0
_WAITS = ("connect", "read", "write", "pool")
SIGN_IN_AGAIN = "Sign in again; on a machine of your own with `hf auth login`."


def hub_api(token: str | None) -> HfApi:
    """A client with exactly this token. None: anonymous (the client itself would take a stored token)."""
    session = get_session()
    hooks = session.event_hooks
    if _never_forever not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _never_forever]}
    return HfApi(token=as_argument(token))


def stay_offline() -> None:
    """From now on this process reads what was downloaded, and asks the Hub nothing."""
    constants.HF_HUB_OFFLINE = True


def _never_forever(request: Any) -> None:
    """By default the client waits for an answer as long as it takes; some of its functions say so explicitly."""
    waits = request.extensions.get("timeout") or dict.fromkeys(_WAITS)
    limits = {name: waits.get(name) or _TIMEOUT_SECONDS for name in _WAITS}
    request.extensions = {**request.extensions, "timeout": limits}


def as_argument(token: str | None) -> str | bool:
    """The token as the client's functions take it; False is anonymous.

    Raises HubError for text that cannot be a token: the client would put it into its exception.
    """
    stripped = (token or "").strip()
    if stripped and not re.fullmatch(r"[!-~]+", stripped):
        raise HubError("The token holds characters that no token has.", "Copy it again.")
    return stripped or False


def is_repo_id(text: str) -> bool:
    """Whether the text can be a repository's name, with or without its owner."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def page_of(repo: str, repo_type: str = "model") -> str:
    """The address of a repository's page."""
    prefix = "" if repo_type == "model" else f"{repo_type}s/"
    return f"{constants.ENDPOINT}/{prefix}{repo}"


@contextmanager
def explained_errors(
    repo: str,
    error_type: type[QloraSpaceError],
    repo_type: str = "model",
    revision: str | None = None,
) -> Iterator[None]:
    """Turn the client's errors into one sentence.

    Raises `error_type` if the repository or revision cannot be read, HubError if the Hub fails, DiskFull.
    """
    try:
        yield
    except GatedRepoError as error:
        raise _gated(repo, error_type, repo_type, error) from None
    except RepositoryNotFoundError:
        raise _not_visible(repo, error_type, repo_type) from None
    except RevisionNotFoundError:
        raise error_type(
            f"{repo} has no revision {revision!r}.", "Use a branch, a tag or a whole commit."
        ) from None
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{repo} could not be read from the Hub") from None


# What the Hub says of a gated repository, as words of its message, and what a person can do; {page} is its address.
_OF_GATED = (
    ("awaiting a review", "your request for access waits for its authors", "Try again when they have agreed: {page}."),
    ("rejected", "its authors refused you access", "Choose another one, or ask them at {page}."),
    (
        "fine-grained token settings",
        "your token may not read gated repositories",
        "Allow that token “access to public gated repositories” in the Hub's settings, or sign in with another one.",
    ),
    (
        "not in the authorized list",
        "you have not accepted its terms",
        "Accept them at {page} and try again.",
    ),
)  # fmt: skip


def _gated(
    repo: str, error_type: type[QloraSpaceError], repo_type: str, error: GatedRepoError
) -> QloraSpaceError:
    page, message = page_of(repo, repo_type), _server_message(error)
    for words, cause, fix in _OF_GATED:
        if words in message:
            return error_type(f"{repo} is gated: {cause}.", fix.format(page=page))
    if status_of(error) == 401:
        return error_type(
            f"{repo} is gated: only those who accept its terms may read it, and you are not signed in.",
            f"Sign in, accept them at {page} and try again.",
        )
    return error_type(
        f"{repo} is gated: only those who accept its terms may read it.",
        f"Log in, accept them at {page} and try again.",
    )


def _not_visible(repo: str, error_type: type[QloraSpaceError], repo_type: str) -> QloraSpaceError:
    page = page_of(repo, repo_type)
    return error_type(
        f"The Hub has no {repo_type} {repo!r} that you can see: it does not exist or is private.",
        f"Check the spelling, or log in with an account that may read {page}.",
    )


def hub_error(error: BaseException, what: str, safe: str = "") -> QloraSpaceError:
    """One sentence for a failed request: `what` failed and why; `safe` says what is not lost."""
    reason, hint = _reason(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFull(f"{what}: the disk is full.", f"Free some space. {safe}".strip())
    return _kind(error)(f"{what}: {reason}.", f"{hint} {safe}".strip())


def _kind(error: BaseException) -> Callable[[str, str], HubError]:
    if status_of(error) == 401:
        return NotSignedIn
    if not may_pass(error):
        return HubError

    def unavailable(what: str, hint: str) -> HubUnavailable:
        made = HubUnavailable(what, hint)
        made.wait_seconds = wait_seconds(error)
        return made

    return unavailable


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    if status is not None:
        return status in RETRY_STATUS
    # An answer that is not JSON was cut short, or is a proxy's error page; xet raises plain RuntimeErrors.
    passing = (
        TransportError,
        ConnectionError,
        TimeoutError,
        LocalEntryNotFoundError,
        json.JSONDecodeError,
        RuntimeError,
    )
    return isinstance(error, passing) and not isinstance(error, OfflineModeIsEnabled)


def _reason(error: BaseException) -> tuple[str, str]:
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set on this machine", "Unset it to use the Hub."
    if status == 401:
        return "the Hub does not know this token: it has ended or was revoked", SIGN_IN_AGAIN
    if status == 403:
        message = _server_message(error)
        return f"the Hub does not allow it{message}", "Log in with a token that has this right."
    if status == 413:
        message = _server_message(error)
        return f"it is larger than the Hub takes{message}", "Publish it without the packed base."
    if status == 429:
        wait = wait_seconds(error)
        when = f"in {wait:.0f} seconds" if wait else "in a few minutes"
        return "the Hub received too many requests", f"Try again {when}."
    if status is not None:
        return f"the Hub answered {status}{_server_message(error)}", "Try again in a few minutes."
    if isinstance(error, (TransportError, ConnectionError, TimeoutError, LocalEntryNotFoundError)):
        return f"{constants.ENDPOINT} does not answer", "Check the network and try again."
    text = error.strerror if isinstance(error, OSError) else None
    return text or f"the connection broke off ({type(error).__name__})", "Try again."


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, None if there was no answer."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return status_of(error.__cause__)
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def client_error(error: Exception) -> Exception:
    """The error behind a RuntimeError, into which the client wraps a failed upload of one file."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def wait_seconds(error: BaseException) -> float:
    """Seconds that the Hub asks to wait before the next request, 0 if it does not say."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = error.response.headers.get("retry-after", "")
    return float(after) if after.isdigit() else 0.0


def _server_message(error: BaseException) -> str:
    text = error.server_message if isinstance(error, HfHubHTTPError) else None
    first_line = (text or "").strip().split("\n")[0][:200].rstrip(".")
    return f" ({without_tokens(first_line)})" if first_line else ""
