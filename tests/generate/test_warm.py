"""A base that waits for questions gives its memory to a run that trains, and comes back when asked."""

import threading
import time
from pathlib import Path

from qlora_space.comparison import CompareRequest, Done, Sampling
from qlora_space.generate.warm import WarmModel
from qlora_space.hub import model_facts
from qlora_space.model import save_adapter
from qlora_space.request import Format
from tests.generate.test_side_by_side import adapted


def test_a_warm_model_gives_way_and_answers_again(tmp_path: Path) -> None:
    save_adapter(adapted(4), tmp_path)
    request = CompareRequest(
        base=model_facts("demo", None, None),
        bits=4,
        adapter_folder=str(tmp_path),
        prompt="Hello",
        system="",
        format=Format.MESSAGES,
        sampling=Sampling(max_new_tokens=2),
    )
    warm, wanted = WarmModel(), threading.Event()
    warm.give_way_when(wanted.is_set)
    assert isinstance(list(warm.replies(request, None))[-1], Done)
    assert warm.is_loaded
    wanted.set()
    deadline = time.monotonic() + 20
    while warm.is_loaded:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert isinstance(list(warm.replies(request, None))[-1], Done)
