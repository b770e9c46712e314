import pytest

from qlora_space.core.launch import Launch, take_launch

SECOND = Launch(rank=1, world_size=2, local_rank=0, address="10.0.0.1", port=29500)


def test_what_a_launcher_sets_is_read_once_and_gone() -> None:
    """Else accelerate would believe that it was launched twice."""
    environment = SECOND.variables() | {"LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1", "HOME": "/root"}
    assert take_launch(environment) == SECOND
    assert environment == {"HOME": "/root"}
    assert take_launch(environment) is None


def test_of_torchrun_comes_who_serves_the_store_and_how_often_it_started_again() -> None:
    of_torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"}
    environment = SECOND.variables() | of_torchrun
    launch = take_launch(environment)
    assert launch is not None
    assert (launch.agent_serves_store, launch.attempt) == (True, "3")
    assert environment == {}


def test_one_process_is_no_launch_and_the_variables_are_gone_all_the_same() -> None:
    environment = Launch(0, 1, 0, "localhost", 29500).variables()
    assert take_launch(environment) is None
    assert environment == {}


@pytest.mark.parametrize("name", list(SECOND.variables()))
def test_half_a_launch_is_none(name: str) -> None:
    environment = SECOND.variables()
    del environment[name]
    assert take_launch(environment) is None
