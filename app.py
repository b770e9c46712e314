"""Serve the page: on this machine, or as a Hugging Face Space."""

import spaces  # noqa: F401, I001 - first: on ZeroGPU it must patch torch before anything imports it

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from qlora_space.app.actions import Actions
from qlora_space.app.ui import serve
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.settings import load_settings


def main() -> int:
    """Serve until stopped. 2: the user must change something."""
    actions = Actions(load_settings())
    try:
        actions.warm_up()
        serve(actions)
    except QloraSpaceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        actions.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
