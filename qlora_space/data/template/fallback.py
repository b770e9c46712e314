"""The chat template of a base: its own, or one of ours that needs no new token."""

from typing import Any

from qlora_space.core.options import Format
from qlora_space.data.template.tokenizer import adds_bos

# For bases without a template; they need no new token. Prompt and answer follow each other plainly.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] | trim + eos_token }}"
    "{% else %}{{ m['content'] | trim + '\\n' }}{% endif %}{% endfor %}"
)
_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + m['content'] | trim + eos_token + '\\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] | trim + '\\n' }}"
    "{% else %}{{ m['content'] | trim + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_PLAIN_FORMATS = (Format.ALPACA, Format.PREFERENCE, Format.KTO, Format.PROMPT_COMPLETION)


def chat_template_of(tokenizer: Any, format: Format = Format.MESSAGES) -> str:
    """The base's own template, else ours for `format`; the one to save with an adapter."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        return template
    own = _PLAIN_TEMPLATE if format in _PLAIN_FORMATS else _CHAT_TEMPLATE
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + own
