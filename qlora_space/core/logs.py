"""What our processes log, on stderr and without tokens: an unexpected error shows what a server answered, and some echo
what they were sent."""

import logging
import sys

from typing_extensions import override

from qlora_space.core.wording import without_tokens


class WithoutTokens(logging.Formatter):
    """Also in tracebacks, where the messages of errors stand that nobody expected."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return without_tokens(super().format(record))


def log_to_stderr(level: int, form: str = logging.BASIC_FORMAT) -> None:
    """From now on, in this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WithoutTokens(form))
    logging.basicConfig(level=level, handlers=[handler])
