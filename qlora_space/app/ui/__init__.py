"""The page. gradio is imported here and in app.py only; torch and transformers are not."""

from qlora_space.app.ui.server import serve

__all__ = ["serve"]
