"""Where an installation keeps its files and how it serves the page; read once from the environment."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from qlora_space.core.errors import RequestError
from qlora_space.core.limits import Limits, limits_from
from qlora_space.core.visitor import LOCAL, folder_name


@dataclass(frozen=True)
class Home:
    """The layout of the folder that holds everything an installation writes."""

    path: Path

    @classmethod
    def of_runs(cls, runs_folder: Path) -> "Home":
        return cls(runs_folder.parent)

    @property
    def runs_folder(self) -> Path:
        return self.path / "runs"

    @property
    def quantized_folder(self) -> Path:
        """Packed low-bit bases; each is made once."""
        return self.path / "quantized"

    def prepared_folder(self, owner: str) -> Path:
        """Prepared data that an owner's runs with the same inputs share."""
        return self._private_folder(owner) / "prepared"

    def base_results_folder(self, owner: str) -> Path:
        """Answers and losses of bases without an adapter, which an owner's runs on the same rows share."""
        return self._private_folder(owner) / "base_results"

    def uploads_folder(self, owner: str) -> Path:
        return self._private_folder(owner) / "uploads"

    def _private_folder(self, owner: str) -> Path:
        """What others must not see; this machine's user has it beside the runs."""
        return self.path if owner == LOCAL else self.path / "owners" / folder_name(owner)

    @property
    def machine_lock_file(self) -> Path:
        """Locked by the run that has this machine."""
        return self.path / "machine.lock"

    def policies_file(self, rank: int = 0) -> Path:
        """Activation policies that the fast step found for this machine; one file for each GPU of a run."""
        suffix = f"-{rank}" if rank else ""
        return self.path / f"activation_policies{suffix}.json"


LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Names of this machine for itself."""


@dataclass(frozen=True)
class Settings:
    """Folders and addresses; everything a deployment may change."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 7860
    is_space: bool = False
    is_zero_gpu: bool = False
    limits: Limits = field(default_factory=Limits)
    job_code: str = ""  # a Space that holds this program, from which a job gets it: OWNER/NAME or OWNER/NAME@COMMIT

    @property
    def is_reachable(self) -> bool:
        """From other machines."""
        return self.is_space or self.host not in LOOPBACK

    @property
    def runs_folder(self) -> Path:
        return Home(self.home).runs_folder

    @property
    def quantized_folder(self) -> Path:
        return Home(self.home).quantized_folder


def is_zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU, by the variable that the platform's own library reads."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def load_settings() -> Settings:
    """Read $QLORA_SPACE_HOME, $QLORA_SPACE_CODE, $SPACE_ID, Gradio's own server variables, and the limits of a Space
    (core/limits.py).

    The default home is the user's data folder ($XDG_DATA_HOME or ~/.local/share), never the
    working folder: Gradio may serve files below the working folder. Raises RequestError.
    """
    data_home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    home = Path(os.environ.get("QLORA_SPACE_HOME") or data_home / "qlora-space")
    is_space = bool(os.environ.get("SPACE_ID"))
    return Settings(
        home=home.expanduser().resolve(),
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if is_space else "127.0.0.1"),
        port=_port(os.environ.get("GRADIO_SERVER_PORT") or "7860"),
        is_space=is_space,
        is_zero_gpu=is_zero_gpu(),
        limits=limits_from(),
        job_code=os.environ.get("QLORA_SPACE_CODE") or os.environ.get("SPACE_ID") or "",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise RequestError(
            f"GRADIO_SERVER_PORT is {text[:80]!r}, which is no port.",
            "Give a number from 1 to 65535.",
        )
    return int(text)
