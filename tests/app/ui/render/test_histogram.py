"""The histogram of lengths and its limit: shares are counted, not estimated."""

import re

from qlora_space.app.ui.render.histogram import cut_sentence, histogram

LENGTHS = (10, 20, 20, 90, 400)


def test_what_is_cut_is_counted_row_by_row() -> None:
    assert cut_sentence(LENGTHS, 20).startswith("Longest example 20 tokens: 40 % are longer")
    assert cut_sentence(LENGTHS, 19).startswith("Longest example 19 tokens: 80 % are longer")
    assert cut_sentence(LENGTHS, 4000) == "Longest example 4,000 tokens: no example is longer."


def test_plain_text_is_split_and_loses_nothing() -> None:
    markup = histogram((4, 1), LENGTHS, 50, is_split=True)
    assert "longer and are split into several" in markup
    assert "lose their end" not in markup


def test_the_line_stands_at_the_limit_and_never_leaves_the_chart() -> None:
    at = [
        float(re.search(r"--at:([\d.]+)%", histogram((4, 1), LENGTHS, n))[1]) for n in (100, 9999)
    ]  # type: ignore[index]
    assert at == [25.0, 100.0]
    assert 'max="400"' in histogram((4, 1), LENGTHS, 100)


def test_without_rows_there_is_no_chart() -> None:
    assert histogram((), (), 0) == ""
