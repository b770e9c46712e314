"""A Modelfile for Ollama: the file, the template in Go's language, the texts that end an answer.

Ollama runs no Jinja. What a template writes around contents is read off prompts with contents that occur nowhere else;
where that does not give back another prompt exactly, the template is left to Ollama.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Turns = Sequence[tuple[str, str]]  # role and content
Render = Callable[[Turns], str]
"""The prompt of a conversation, up to where the answer begins. Raises ValueError if the template refuses it."""
_SYSTEM, _USER, _ANSWER, _NEXT = "Qzsys7", "Qzusr7", "Qzans7", "Qznxt7"


@dataclass(frozen=True)
class Wrapping:
    """What stands around contents. `head`: in place of the system turn where there is none."""

    head: str
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    before_answer: str
    after_answer: str

    def prompt(self, turns: Turns) -> str:
        """As Ollama will write it."""
        has_system = bool(turns) and turns[0][0] == "system"
        text = "" if has_system else self.head
        for role, content in turns:
            match role:
                case "system":
                    text += self.before_system + content + self.after_system
                case "user":
                    text += self.before_user + content + self.after_user
                case _:
                    text += self.before_answer + content + self.after_answer
        return text

    def go_template(self) -> str:
        """The same in the language of Ollama's templates."""
        return (
            f"{{{{ if .System }}}}{self.before_system}{{{{ .System }}}}{self.after_system}{{{{ else }}}}{self.head}"
            "{{ end }}{{ range .Messages }}"
            f'{{{{ if eq .Role "user" }}}}{self.before_user}{{{{ .Content }}}}{self.after_user}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.before_answer}{{{{ .Content }}}}{self.after_answer}'
            "{{ end }}{{ end }}"
        )


def wrapping_of(render: Render, bos: str = "") -> Wrapping | None:
    """None for a template that writes anything else than contents and the same text around them. `bos`: left out,
    because llama.cpp writes it."""
    try:
        first = render([("system", _SYSTEM), ("user", _USER)])
        alone = render([("user", _USER)])
        long = [("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)]
        whole = render(long)
        before_system, after = first.removeprefix(bos).split(_SYSTEM)
        between, after_user = after.split(_USER)
        head_and_user, _ = alone.removeprefix(bos).split(_USER)
        before, after_answer_and_user = whole.split(_NEXT)[0].split(_ANSWER)
        _, before_answer = before.split(_USER + after_user)
    except ValueError:
        return None
    before_user = _common_end(between, after_answer_and_user, head_and_user)
    cut = len(before_user)
    found = Wrapping(
        head=head_and_user[: len(head_and_user) - cut],
        before_system=before_system,
        after_system=between[: len(between) - cut],
        before_user=before_user,
        after_user=after_user,
        before_answer=before_answer,
        after_answer=after_answer_and_user[: len(after_answer_and_user) - cut],
    )
    is_same = found.prompt(long) == whole.removeprefix(bos)
    is_safe = not any(mark in found.head + found.prompt(long) for mark in ("{{", "}}", '"""'))
    return found if is_same and is_safe else None


def _common_end(*texts: str) -> str:
    length = 0
    while length < min(map(len, texts)) and len({text[-1 - length] for text in texts}) == 1:
        length += 1
    return texts[0][len(texts[0]) - length :]


def modelfile(
    source: str, wrapping: Wrapping | None, stops: Sequence[str], adapter: str = ""
) -> str:
    """The text of the file. source: a GGUF beside it, or in Ollama's words the base of the adapter."""
    lines = [f"FROM {source}"]
    if adapter:
        lines.append(f"ADAPTER {adapter}")
    if wrapping is not None:
        lines.append(f'TEMPLATE """{wrapping.go_template()}"""')
    else:
        lines.append(
            "# The chat template cannot be written in Go's: Ollama takes the one in the GGUF if it knows it."
        )
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"
