"""Which of a run's processes this one is, by the variables that torchrun and its like set."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

_OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_OTHERS = (
    "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME",
)  # fmt: skip
_AGENT_STORE, _RESTARTS = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Launch:
    """`local_rank`: number of its GPU on its machine. `address`, `port`: of the store, which rank 0 serves unless
    torchrun's `agent_serves_store`. `attempt`: how often all were started again."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    agent_serves_store: bool = False
    attempt: str = "0"

    def variables(self) -> dict[str, str]:
        """As a launcher sets them."""
        values = (self.rank, self.world_size, self.local_rank, self.address, self.port)
        return dict(zip(_OURS, map(str, values), strict=True))


def take_launch(environment: MutableMapping[str, str]) -> Launch | None:
    """None without a launcher, or if it started one process only. Raises ValueError for a number that is none.

    The variables are removed: transformers and accelerate must not believe that they were launched many times.
    """
    launch = _read(environment) if all(environment.get(name) for name in _OURS) else None
    for name in (*_OURS, *_OTHERS, _AGENT_STORE, _RESTARTS):
        environment.pop(name, None)
    return launch if launch and launch.world_size > 1 else None


def _read(environment: Mapping[str, str]) -> Launch:
    rank, world_size, local_rank, port = (
        int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        address=environment["MASTER_ADDR"],
        port=port,
        agent_serves_store=environment.get(_AGENT_STORE) == "True",
        attempt=environment.get(_RESTARTS, "0"),
    )
