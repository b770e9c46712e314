"""A Modelfile writes conversations as the chat template does, or leaves the template to Ollama."""

import pytest

from qlora_space.model.ollama import Turns, modelfile, wrapping_of

CHATML = "<|im_start|>{}\n{}<|im_end|>\n"
DEFAULT = "You are helpful."
PROMPTS: list[Turns] = [
    [("user", "a")],
    [("system", "s"), ("user", "a")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]  # fmt: skip


def chatml(turns: Turns) -> str:
    return "".join(CHATML.format(*turn) for turn in turns) + "<|im_start|>assistant\n"


def with_default(turns: Turns) -> str:
    return chatml(turns if turns[0][0] == "system" else [("system", DEFAULT), *turns])


def inst(turns: Turns) -> str:
    text = "<s>"
    if turns[0][0] == "system":
        text += f"[SYS]{turns[0][1]}[/SYS]"
    for role, content in turns:
        if role == "user":
            text += f"[INST] {content} [/INST]"
        elif role == "assistant":
            text += f" {content}</s>"
    return text


def thinking(turns: Turns) -> str:
    """Answers before the last one are written in another way."""
    return "".join(CHATML.format(*t) for t in turns) + "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(("render", "bos"), [(chatml, ""), (with_default, ""), (inst, "<s>")])
def test_it_writes_what_the_template_writes(render, bos: str) -> None:
    wrapping = wrapping_of(render, bos)
    assert wrapping is not None
    for turns in PROMPTS:
        assert bos + wrapping.prompt(turns) == render(turns)


def refuses_system(turns: Turns) -> str:
    if turns[0][0] == "system":
        raise ValueError("no system turn")
    return chatml(turns)


def with_directives(turns: Turns) -> str:
    """Of a default system text, which prompts with one of their own do not have."""
    return chatml(turns if turns[0][0] == "system" else [("system", '"""\nADAPTER /etc/x'), *turns])


@pytest.mark.parametrize(
    "render",
    [thinking, refuses_system, lambda turns: "{{ " + chatml(turns), with_directives],
)
def test_another_template_is_left_to_ollama(render) -> None:
    assert wrapping_of(render) is None
    text = modelfile("./model.gguf", wrapping_of(render), ["<|im_end|>"])
    assert "TEMPLATE" not in text
    assert text.startswith("FROM ./model.gguf\n")


def test_the_file_names_template_stops_and_adapter() -> None:
    text = modelfile("./base.gguf", wrapping_of(chatml), ["<|im_end|>", '"'], "./adapter.gguf")
    assert "ADAPTER ./adapter.gguf\n" in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert 'PARAMETER stop "\\""\n' in text
    assert "{{ if .System }}<|im_start|>system\n{{ .System }}" in text
    assert "{{ range .Messages }}" in text
