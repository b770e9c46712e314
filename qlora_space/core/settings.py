"""Where this installation keeps its files and how it serves the page. Read once from the environment."""

import os
from dataclasses import dataclass
from pathlib import Path

from qlora_space.core.errors import RequestError


@dataclass(frozen=True)
class Settings:
    """Folders and addresses; everything a deployment may change."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 7860
    is_space: bool = False

    @property
    def runs_folder(self) -> Path:
        return self.home / "runs"

    @property
    def quantized_folder(self) -> Path:
        """Packed low-bit bases, made once."""
        return self.home / "quantized"

    @property
    def uploads_folder(self) -> Path:
        return self.home / "uploads"


def load_settings() -> Settings:
    """Read $QLORA_SPACE_HOME, $SPACE_ID and Gradio's own server variables.

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
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise RequestError(
            f"GRADIO_SERVER_PORT is {text[:80]!r}, which is no port.",
            "Give a number from 1 to 65535.",
        )
    return int(text)
