"""Logs in a process of their own."""

import subprocess
import sys

import pytest

_CODE = """
import logging, sys
from qlora_space.core.logs import log_to_stderr
log_to_stderr(logging.WARNING)
token = sys.argv[1]
try:
    raise RuntimeError(f"the proxy says: bad header Bearer {token}")
except RuntimeError:
    logging.getLogger("a library").exception("unexpected, with %s", token)
"""


@pytest.mark.parametrize(
    "token",
    [
        "hf_aliceWriteTokenForTestsOnly",
        "hf_oauth_eyJhbGci.eyJzdWI-x_y.s1g-n",
        "eyJhbGci.eyJzdWI.x-y_z",
    ],
)
def test_a_token_in_an_error_that_nobody_expected_is_not_logged(token: str) -> None:
    command = [sys.executable, "-c", _CODE, token]
    logged = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "RuntimeError: the proxy says: bad header (a token)" in logged
    assert token not in logged
    assert token[-6:] not in logged


def test_words_that_begin_like_a_token_stay() -> None:
    from qlora_space.core.wording import without_tokens

    assert without_tokens("hf_hub_download, hf_home") == "hf_hub_download, hf_home"
