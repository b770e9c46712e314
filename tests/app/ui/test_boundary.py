import logging
from collections.abc import Iterator

import gradio as gr
import pytest

from qlora_space.app.ui.boundary import shows_errors
from qlora_space.core.errors import HubError


@shows_errors
def known() -> None:
    raise HubError("The Hub said <no>.", "Try again.")


@shows_errors
def unknown() -> None:
    raise KeyError("/secret/place")


@shows_errors
def halfway() -> Iterator[int]:
    yield 1
    raise HubError("It broke.", "Go on.")


def test_our_errors_keep_their_words_and_are_escaped() -> None:
    with pytest.raises(gr.Error) as caught:
        known()
    assert caught.value.message == "The Hub said &lt;no&gt;. Try again."


def test_a_bug_shows_a_number_that_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as caught:
        unknown()
    shown = str(caught.value.message)
    assert "secret" not in shown
    number = shown.split("id ")[1].split(")")[0]
    assert number in caplog.text
    assert "secret" in caplog.text


def test_a_stream_that_breaks_says_so_after_what_it_gave() -> None:
    stream = halfway()
    assert next(stream) == 1
    with pytest.raises(gr.Error):
        next(stream)
