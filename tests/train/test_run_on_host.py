"""A run whose base lies in host memory is the same run."""

from pathlib import Path

from qlora_space.core.events import Finished
from qlora_space.train.load import base_and_adapter
from tests.train.small import go_on, outcome, small_plan, small_run, tiny_base


def test_its_losses_and_its_adapter_are_the_same_bits(tmp_path: Path) -> None:
    found = []
    for cpu_offload in (False, True):
        plan = small_plan(step_kind="fast", bits=4, lora_dropout=0.0, cpu_offload=cpu_offload)
        run = small_run(tmp_path / str(cpu_offload), plan)
        assert isinstance(go_on(run), Finished)
        found.append(outcome(run))
    assert found[0] == found[1]


def test_the_plan_decides_where_the_weights_lie(tmp_path: Path) -> None:
    for cpu_offload in (False, True):
        plan = small_plan(step_kind="fast", bits=4, lora_dropout=0.0, cpu_offload=cpu_offload)
        model = base_and_adapter(small_run(tmp_path / str(cpu_offload), plan), tiny_base())
        layers = model.get_base_model().model.layers  # type: ignore[union-attr]
        assert [hasattr(layer, "host_block") for layer in layers] == [cpu_offload] * len(layers)  # type: ignore


def test_it_is_heard_of_between_the_tokens_that_it_answers_with(tmp_path: Path) -> None:
    """As many forward passes otherwise: what more there is comes from answers."""
    pulses = {False: 0, True: 0}
    for cpu_offload in pulses:

        def heartbeat(name: bool = cpu_offload) -> None:
            pulses[name] += 1

        plan = small_plan(
            step_kind="fast", bits=4, lora_dropout=0.0, cpu_offload=cpu_offload, num_samples=2
        )
        go_on(small_run(tmp_path / str(cpu_offload), plan), heartbeat=heartbeat)
    assert pulses[True] >= pulses[False] + 5
