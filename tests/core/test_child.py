import pytest

from qlora_space.core.child import ChildFailed, run_python


def test_what_it_writes_comes_back_and_it_gets_what_it_is_given() -> None:
    code = "import os, sys; print(sys.stdin.read() + os.environ['ADDED'])"
    said = run_python(["-c", code], seconds=60, stdin="a", environment={"ADDED": "b"})
    assert said == "ab\n"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('no such tensor.')", "ValueError: no such tensor"),
        ("import sys; sys.exit(3)", "it ended with 3"),
        ("import os; os.abort()", "it was ended by signal 6"),
        (
            "import sys; sys.stderr.buffer.write(b'\\xff bad'); sys.exit(1)",
            "\N{REPLACEMENT CHARACTER} bad",
        ),
    ],
)
def test_one_that_fails_says_why_in_one_line(code: str, why: str) -> None:
    with pytest.raises(ChildFailed) as failed:
        run_python(["-c", code], seconds=60)
    assert str(failed.value) == why


def test_one_that_hangs_is_ended() -> None:
    with pytest.raises(ChildFailed, match="not done after 0 minutes"):
        run_python(["-c", "while True: pass"], seconds=0.2)
