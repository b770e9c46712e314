"""The named endpoints, through the real gradio_client."""

import time

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.app.ui.conftest import Site


@pytest.fixture(scope="module")
def client(site: Site) -> Client:
    return Client(site.url, verbose=False)


def test_the_endpoints_are_these(client: Client) -> None:
    shown = client.view_api(print_info=False, return_format="dict")
    assert isinstance(shown, dict)
    assert set(shown["named_endpoints"]) == {
        "/compare",
        "/compare_many",
        "/events",
        "/inspect",
        "/plan",
        "/publish",
        "/resume",
        "/start",
        "/stop",
    }


def test_inspect_and_plan_answer_plain_json(client: Client) -> None:
    found = client.predict({"dataset": "warned"}, api_name="/inspect")
    assert found["num_rows"] == 1000
    assert found["problems"][0]["code"] == "duplicate_rows"
    plan = client.predict({"dataset": "demo", "r": 8}, api_name="/plan")
    assert plan["r"] == 8
    assert plan["estimate"]["fits"] is True


def test_a_run_is_started_followed_stopped_compared_and_published(
    client: Client, site: Site
) -> None:
    run_id = client.predict({"max_steps": 30}, api_name="/start")["run_id"]
    while not (events := client.predict(run_id, 2, api_name="/events")):
        time.sleep(0.1)
    assert events[0]["seq"] == 2
    assert client.predict(run_id, True, api_name="/stop")["run_id"] == run_id
    job = client.submit(site.done.id, "hello", api_name="/compare")
    assert job.result()["kind"] == "done"
    assert job.outputs()[0]["kind"] == "loading"
    done = client.predict(site.done.id, "ada/x", True, api_name="/publish")
    assert (done["repo"], done["commit"]) == ("ada/x", "4e1f" * 10)


@pytest.mark.parametrize(
    ("arguments", "endpoint", "words"),
    [
        (({"dataset": "nobody/x"},), "/inspect", "There is no dataset 'nobody/x' on the Hub."),
        (({"bogus": 1},), "/plan", "bogus: "),
        (("../../etc", 0), "/events", "There is no run '../../etc' on this machine."),
        (("f" * 32, "p", "", {"temperature": 9}), "/compare", "There is no run"),
    ],
)
def test_errors_are_our_sentences(
    client: Client, arguments: tuple[object, ...], endpoint: str, words: str
) -> None:
    with pytest.raises(AppError) as caught:
        client.predict(*arguments, api_name=endpoint)
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)
