"""Who may speak to the page, and who may read what it keeps."""

import asyncio
import dataclasses
import inspect
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio.queueing import Queue

from qlora_space.app.actions import Actions
from qlora_space.app.ui.page import build_page
from qlora_space.app.ui.server import allowed_hosts, warning
from qlora_space.core.settings import Settings
from tests.app.ui.conftest import Site

HERE = Settings(home=Path("/nowhere"))


def test_a_strangers_name_that_points_here_is_not_answered(site: Site) -> None:
    """DNS rebinding: the browser takes a stranger's page and this server for one site."""
    plan = site.url + "gradio_api/call/plan"
    asked = {"data": [{"dataset": "demo"}]}
    for host, status in (("evil.example:7860", 400), ("localhost:7860", 200), ("127.0.0.1", 200)):
        origin = {"Host": host, "Origin": f"http://{host}"}
        assert httpx.post(plan, json=asked, headers=origin).status_code == status, host


def test_a_page_that_is_meant_for_others_answers_to_the_names_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADIO_ROOT_PATH", "https://lab.example/tuning")
    assert "lab.example" in allowed_hosts(HERE)
    for open_to_all in ({"host": "0.0.0.0"}, {"host": "0.0.0.0", "is_space": True}):
        settings = dataclasses.replace(HERE, **open_to_all)
        assert allowed_hosts(settings) == ["*"]


def test_serving_to_a_network_warns_of_what_that_means() -> None:
    assert warning(HERE) == ""
    assert "acts as you" in warning(dataclasses.replace(HERE, host="0.0.0.0"))
    assert warning(dataclasses.replace(HERE, host="0.0.0.0", is_space=True)) == ""


def test_what_is_kept_is_for_its_owner_only(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    Actions(Settings(home=home)).close()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_the_page_is_sent_compressed_to_those_who_take_it(site: Site) -> None:
    sizes = {}
    for encoding in ("gzip", "identity"):
        with httpx.stream("GET", site.url, headers={"Accept-Encoding": encoding}) as response:
            assert response.headers.get("content-encoding", "identity") == encoding
            sizes[encoding] = sum(map(len, response.iter_raw()))
    assert 5 * sizes["gzip"] < sizes["identity"]


def test_gradio_gives_up_on_a_slow_page_only_where_it_is_told_to_look() -> None:
    """`serve` passes _frontend=False, a private name of gradio 6.31: on a busy machine its own request times out."""
    assert "if _frontend and not networking.url_ok(" in inspect.getsource(gr.Blocks.launch)


def test_a_server_that_nobody_uses_leaves_the_processor_alone(tmp_path: Path) -> None:
    """Of gradio 6.31's queue, which looks for calls a thousand times a second where it is left as it is."""
    actions = Actions(Settings(home=tmp_path))
    ours, left_as_it_is = (build_page(actions)._queue for _ in range(2))
    left_as_it_is.sleep_when_free = left_as_it_is.progress_update_sleep_when_free = 0.001

    async def waits_for_calls(queue: Queue) -> float:
        began = time.thread_time()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(queue.start_processing(), queue.start_progress_updates())
        return time.thread_time() - began

    with ThreadPoolExecutor(1) as thread:  # that of the tests has Playwright's loop
        seconds = [
            thread.submit(asyncio.run, waits_for_calls(queue)).result()
            for queue in (ours, left_as_it_is)
        ]
    assert seconds[0] < 0.6 * seconds[1]
    actions.close()
