"""Errors that a user can act on. Each says what is wrong with which value, then what to do.

Any other exception is a bug of ours. They cross process boundaries, so they must pickle.
"""

from collections.abc import Iterator


class QloraSpaceError(Exception):
    """Base of all. `what`: one sentence with the value that is wrong; `hint`: what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} {self.hint}".strip()


class RequestError(QloraSpaceError, ValueError):
    """A field of the request has a value that cannot be used."""


class DatasetError(QloraSpaceError, ValueError):
    """The dataset cannot be found, read, or turned into training rows."""


class ModelError(QloraSpaceError, ValueError):
    """The base model or an adapter cannot be used."""


class HubError(QloraSpaceError, RuntimeError):
    """The Hub refused or did not answer."""


class HubUnavailable(HubError):
    """The Hub did not answer, failed, or asked to wait: the same request may succeed later.

    `wait_seconds`: how long it asked to wait, 0 if it did not say.
    """

    wait_seconds = 0.0


class NotSignedIn(HubError):
    """Nobody is signed in, or the sign-in has ended."""


class Conflict(HubError):
    """Somebody changed the same files on the Hub. A person has to say which are to stay."""


class OutOfMemory(QloraSpaceError, RuntimeError):
    """The GPU or the machine has too little memory for this plan."""


class DiskFull(QloraSpaceError, RuntimeError):
    """The disk has too little free space."""


class RunError(QloraSpaceError, LookupError):
    """No such run, or the run is not in a state that allows the action."""


class BackendError(QloraSpaceError, RuntimeError):
    """A child process could not be started, did not answer, or could not be stopped."""


class Superseded(BackendError):
    """The same page has asked anew meanwhile."""


def error_named(class_name: str, what: str, hint: str) -> QloraSpaceError:
    """One of these errors, by the name of its class: how it comes from another process."""
    kinds = {kind.__name__: kind for kind in _all_kinds(QloraSpaceError)}
    return kinds.get(class_name, QloraSpaceError)(what, hint)


def _all_kinds(kind: type[QloraSpaceError]) -> Iterator[type[QloraSpaceError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _all_kinds(child)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text without its full stop, at most 200 characters; its type's name if it has
    no text. For our own sentences around errors of libraries, whose texts run over many lines."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
