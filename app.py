"""Serve the page: on this machine, or as a Hugging Face Space."""

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from qlora_space.app.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app"]))
