"""What a Hub knows of a Space besides its files: hardware, sleep time, volumes, variables and secrets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HARDWARE = (
    {
        "name": "cpu-basic",
        "prettyName": "CPU Basic",
        "cpu": "2 vCPU",
        "ram": "16 GB",
        "accelerator": None,
        "unitCostMicroUSD": 0,
        "unitCostUSD": 0,
        "unitLabel": "minute",
    },
    {
        "name": "l4x1",
        "prettyName": "1x Nvidia L4",
        "cpu": "8 vCPU",
        "ram": "30 GB",
        "accelerator": {
            "type": "gpu",
            "model": "L4",
            "quantity": "1",
            "vram": "24 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 13333,
        "unitCostUSD": 0.013333,
        "unitLabel": "minute",
    },
)


@dataclass
class SpaceState:
    """Requested by the creation or by later requests; nothing is built or started."""

    sdk: str = "gradio"
    hardware: str = "cpu-basic"
    sleep_seconds: int | None = None
    volumes: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    @classmethod
    def created(cls, body: Mapping[str, Any]) -> "SpaceState":
        return cls(
            sdk=body["sdk"],
            hardware=body.get("hardware") or "cpu-basic",
            sleep_seconds=body.get("sleepTimeSeconds"),
            volumes=list(body.get("volumes") or ()),
            variables={v["key"]: v["value"] for v in body.get("variables") or ()},
            secrets={s["key"]: s["value"] for s in body.get("secrets") or ()},
        )

    def runtime(self) -> dict[str, Any]:
        return {
            "stage": "BUILDING",
            "hardware": {"current": None, "requested": self.hardware},
            "gcTimeout": self.sleep_seconds,
            "volumes": self.volumes or None,
        }

    def named(self, kind: str) -> dict[str, Any]:
        """Variables with their values; secrets, which cannot be read, without."""
        if kind == "variables":
            return {key: {"value": value} for key, value in self.variables.items()}
        return {key: {"description": ""} for key in self.secrets}

    def set(self, kind: str, body: Mapping[str, Any]) -> None:
        """Apply a request that ends in `kind`."""
        if kind == "hardware":
            self.hardware = body["flavor"]
            self.sleep_seconds = body.get("sleepTimeSeconds", self.sleep_seconds)
        elif kind == "sleeptime":
            self.sleep_seconds = body["seconds"]
        elif kind == "volumes":
            self.volumes = list(body["volumes"])
        elif kind == "variables":
            self.variables[body["key"]] = body["value"]
        elif kind == "secrets":
            self.secrets[body["key"]] = body["value"]
