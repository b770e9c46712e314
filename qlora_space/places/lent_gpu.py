"""The GPU that ZeroGPU lends, as a process that may ask the platform has found it, and as plans see it."""

from pydantic import BaseModel, ConfigDict

from qlora_space.core.facts import Hardware

_GIB = 2**30
_CONTEXT_BYTES = 2**29  # what CUDA and its libraries hold themselves
_BF16, _FP8 = (8, 0), (8, 9)


class LentGpu(BaseModel):
    """`num_bytes`: of the part of the card that is lent; `factor`: how often a second counts; `compiles`: whether
    Triton's kernels can be built here."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_bytes: int
    capability: tuple[int, int]
    factor: float
    compiles: bool

    def hardware(self, here: Hardware) -> Hardware:
        """For a plan; `here` is the machine without it."""
        return Hardware(
            name=f"{self.name}, lent by ZeroGPU",
            device="cuda",
            memory_gib=round(self.num_bytes / _GIB, 2),
            free_gib=round((self.num_bytes - _CONTEXT_BYTES) / _GIB, 2),
            cpu_cores=here.cpu_cores,
            has_bf16=self.capability >= _BF16,
            has_fp8=self.capability >= _FP8,
            compiles_kernels=self.compiles,
            disk_free_gib=here.disk_free_gib,
            host_free_gib=here.free_gib if here.device == "cpu" else here.host_free_gib,
        )
