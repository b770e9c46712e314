"""Fine-tune a language model with QLoRA from the browser, and trust the result."""

__version__ = "0.1.0"
