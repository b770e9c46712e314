"""Every form in which ZeroGPU refuses or ends something, through its own library, and the sentence it becomes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from qlora_space.places.refusals import refusal_of
from tests.fake_zero_gpu import FakeZeroGpu, queue_answer, quota_answer, running_zero_gpu

ROOT = Path(__file__).parents[2]
OWNER = "header.eyJ1c2VyIjogImFsaWNlIn0.signature"


@pytest.fixture(scope="module")
def zero() -> Iterator[FakeZeroGpu]:
    with running_zero_gpu() as fake:
        yield fake


def results(fake: FakeZeroGpu, folder: Path, *works: str, token: str = OWNER) -> list[Any]:
    """What each call came to, in a process of its own."""
    script = [sys.executable, "-m", "tests.places.lent_calls", token, *works]
    variables = os.environ | fake.environment(folder)
    done = subprocess.run(script, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


REFUSED = {
    "the quota is spent": (
        lambda: quota_answer(40, 18753),
        ["quota", "Of your ZeroGPU quota 40 s are left. Try again in 5 h 12 min.", 40.0],
    ),
    "a day and more": (
        lambda: quota_answer(0, 90_000),
        ["quota", "Of your ZeroGPU quota 0 s are left. Try again in 25 h 0 min.", 0.0],
    ),
    "too many runs": (
        lambda: quota_answer(100, 0, "runs-exceeded"),
        ["quota", "You have used ZeroGPU as often as a day allows. Try again tomorrow.", 0.0],
    ),
    "credits are held": (
        lambda: quota_answer(0, 5, "pending-overquota-exceeded"),
        [
            "quota",
            "Other tasks of yours hold all your ZeroGPU credits. Try again when a task of yours is done.",
            0.0,
        ],
    ),
    "too long": (
        lambda: quota_answer(0, -1, "illegal-duration"),
        ["duration", "ZeroGPU does not lend a GPU for so long at once (30 s).", 0.0],
    ),
    "no GPU in a minute": (
        lambda: queue_answer("ping", "failed"),
        ["gpu", "No GPU was free within a minute. Try again in some minutes.", 0.0],
    ),
    "no GPU at all": (
        lambda: Response(status_code=503),
        ["gpu", "No GPU was free within a minute. Try again in some minutes.", 0.0],
    ),
    "the page's sign-in ended": (
        lambda: Response(status_code=401),
        [
            "visitor",
            "The page was open for so long that its sign-in ended. Reload the page and go on.",
            0.0,
        ],
    ),
    "the platform is broken": (
        lambda: Response(status_code=500),
        ["platform", "ZeroGPU does not answer. Try again in some minutes.", 0.0],
    ),
    "its answer breaks off": (
        lambda: queue_answer("ping"),
        ["platform", "ZeroGPU does not answer. Try again in some minutes.", 0.0],
    ),
}


@pytest.fixture(scope="module")
def refused(zero: FakeZeroGpu, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All in one process, one after the other."""
    zero.refusals = [answer for answer, _ in REFUSED.values()]
    works = ["nothing"] * len(REFUSED)
    found = results(zero, tmp_path_factory.mktemp("refused"), *works)
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_platform_refuses_becomes_a_sentence(refused: dict[str, Any], name: str) -> None:
    assert refused[name] == REFUSED[name][1]


def test_calls_are_forked_kept_warm_ended_when_they_overrun_and_have_no_children(
    zero: FakeZeroGpu, tmp_path: Path
) -> None:
    """After an overrun there is a new process, which knows nothing of the one before."""
    reports = zero.reports
    works = ("nothing", "nothing", "child", "unpicklable", "too long", "nothing")
    first, second, child, unpicklable, overrun, last = results(zero, tmp_path, *works)
    assert zero.reports == reports + 1, "the platform knows that there are functions"
    assert first == [{"forked": True, "calls": 1}]
    assert second == [{"forked": True, "calls": 2}], "the process is the same"
    assert child[:2] == [
        "broken",
        "The process on the GPU failed: AssertionError. The lines before it in the process log say more.",
    ]
    assert unpicklable[0] == "broken"
    assert overrun[:2] == ["aborted", "ZeroGPU ended the slice before it had saved."]
    assert last == [{"forked": True, "calls": 1}]


def test_nobody_pays_for_a_call_without_a_visitor(zero: FakeZeroGpu, tmp_path: Path) -> None:
    zero.refusals = [lambda: quota_answer(0, 100), lambda: queue_answer("failed")]
    unknown, no_gpu = results(zero, tmp_path, "nothing", "nothing", token="")
    assert unknown[:2] == [
        "visitor",
        "ZeroGPU does not know whose time this is. Open this Space from huggingface.co, signed in there: "
        "ZeroGPU counts the time of an account.",
    ]
    assert no_gpu[0] == "gpu"


def test_an_error_of_ours_is_not_the_platforms() -> None:
    assert refusal_of(ValueError("No GPU was available")) is None
    assert refusal_of(RuntimeError("CUDA error: an illegal memory access")) is None


def test_importing_the_platforms_library_elsewhere_changes_nothing() -> None:
    code = (
        "import sys, spaces; f = lambda: 1\n"
        "assert spaces.GPU(f) is f and spaces.GPU(duration=5)(f) is f\n"
        "print(sorted({'torch', 'gradio'} & set(sys.modules)))"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SPACES_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
