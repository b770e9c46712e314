"""Serve the page: on this machine, or as a Hugging Face Space."""

import spaces  # noqa: F401, I001 - first: on ZeroGPU it must patch torch before anything imports it

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from qlora_space.app.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app"]))
