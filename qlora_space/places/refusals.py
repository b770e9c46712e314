"""What ZeroGPU refused or ended, in a sentence: its errors are titles and texts of gradio's, for a toast on a page."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["quota", "duration", "visitor", "gpu", "aborted", "broken", "platform"]
_REQUESTED = re.compile(r"\((\d+)s requested vs\. (-?\d+)s left\)")
_WAIT = re.compile(r"Try again in ((?:\d+ days?, )?\d+:\d\d:\d\d)")
_TOO_LONG = re.compile(r"requested GPU duration \((\d+)s\)")
_CREDITS = "Try again when a task of yours is done."
_SIGN_IN = (
    "Open this Space from huggingface.co, signed in there: ZeroGPU counts the time of an account."
)


@dataclass(frozen=True)
class Refusal:
    """`kind` says what can be done: 'duration' and 'quota' with `left_seconds`: ask for less; 'aborted': go on from the
    last checkpoint; else wait."""

    kind: Kind
    what: str
    hint: str = ""
    left_seconds: float = 0.0

    @property
    def sentence(self) -> str:
        return f"{self.what} {self.hint}".strip()


def refusal_of(error: Exception) -> Refusal | None:
    """None for an error that is not the platform's."""
    title, text = str(getattr(error, "title", "")), str(getattr(error, "message", error))
    match title:
        case "ZeroGPU quota exceeded":
            return _quota(text)
        case "ZeroGPU pending credits exceeded":
            return Refusal("quota", "Other tasks of yours hold all your ZeroGPU credits.", _CREDITS)
        case "ZeroGPU illegal duration":
            asked = _TOO_LONG.search(text)
            seconds = f" ({asked[1]} s)" if asked else ""
            return Refusal("duration", f"ZeroGPU does not lend a GPU for so long at once{seconds}.")
        case "ZeroGPU queue timeout":
            return _no_gpu()
        case "ZeroGPU client error":
            return _client_error(text)
        case "ZeroGPU worker error":
            return _worker_error(text)
    return _of_the_platform(error, text)


def _quota(text: str) -> Refusal:
    """The title is also that of an unknown visitor, and of one for whom no GPU was free."""
    if "No GPU was available" in text:
        return _no_gpu()
    if "reached its GPU limit" in text:
        return Refusal("visitor", "ZeroGPU does not know whose time this is.", _SIGN_IN)
    wait = _WAIT.search(text)
    hint = f"Try again in {_in_words(wait[1])}." if wait else "Try again tomorrow."
    if "runs limit" in text:
        return Refusal("quota", "You have used ZeroGPU as often as a day allows.", hint)
    found = _REQUESTED.search(text)
    left = max(0.0, float(found[2])) if found else 0.0
    what = (
        f"Of your ZeroGPU quota {left:.0f} s are left." if found else "Your ZeroGPU quota is spent."
    )
    return Refusal("quota", what, hint, left)


def _in_words(wait: str) -> str:
    """'5:12:33' and '1 day, 0:10:00' as hours and minutes."""
    days, _, clock = wait.rpartition(", ")
    hours, minutes, _ = map(int, clock.split(":"))
    hours += 24 * int(days.split()[0]) if days else 0
    parts = [f"{hours} h"] if hours else []
    return " ".join([*parts, f"{minutes} min"])


def _no_gpu() -> Refusal:
    return Refusal("gpu", "No GPU was free within a minute.", "Try again in some minutes.")


def _client_error(text: str) -> Refusal:
    if "No GPU was available" in text:
        return _no_gpu()
    if "proxy token" in text:
        hint = "Reload the page and go on."
        return Refusal("visitor", "The page was open for so long that its sign-in ended.", hint)
    return Refusal("platform", "ZeroGPU could not take the request.", "Try again in some minutes.")


def _worker_error(text: str) -> Refusal:
    if "aborted" in text:
        return Refusal("aborted", "ZeroGPU ended the slice before it had saved.")
    name = re.sub(r"\W", "", text)[:60]
    hint = "The lines before it in the process log say more."
    return Refusal("broken", f"The process on the GPU failed: {name}.", hint)


def _of_the_platform(error: Exception, text: str) -> Refusal | None:
    """httpx's errors, and the client's own."""
    is_transport = type(error).__module__.partition(".")[0] in ("httpx", "httpcore")
    if isinstance(error, RuntimeError) and "Connection closed by visitor" in text:
        return Refusal("visitor", "The page was closed while the run waited for a GPU.")
    known = ("ZeroGPU API", "Unexpected end of stream", "re-trying after queue disconnect")
    if is_transport or (isinstance(error, RuntimeError) and any(k in text for k in known)):
        return Refusal("platform", "ZeroGPU does not answer.", "Try again in some minutes.")
    return None
