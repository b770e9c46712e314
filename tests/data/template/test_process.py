"""Chat templates are programs of unknown origin: whatever they do ends soon, in one sentence."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_space.core.errors import ModelError
from qlora_space.data import Message, render_prompt
from qlora_space.data.template.layout import TemplateRefused
from qlora_space.data.template.process import RenderJob, RenderResult, TemplateProcess
from tests.data.conftest import CHATML, MARKED, TEMPLATES, make_tokenizer

JOB = RenderJob(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}))
BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 2000000000 }}",
    "{{ 9 ** 99999999 }}",
    "{{ [0] * 999999999 }}",
    "{{ 'a'.ljust(2000000000) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{{ 'a' * 40000000 }}",
)
# Of the same kinds, and each takes its two seconds.
COSTLY_BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ ('a' * 200000000) ~ ('b' * 200000000) }}",
    "{{ (9 ** 9999999) | string }}",
    "{{ '%02000000000d' % 1 }}",
    "{{ '{:>2000000000}'.format(1) }}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "{{ (range(99999) | list) | map('string') | join(',') * 9999 }}",
    "{{ range(99999) | batch(1) | list | tojson | indent(99999) * 99 }}",
    "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa' | wordwrap(1) | replace('a', 'a' * 99999999) }}",
)


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


def cpu_seconds(pid: int) -> float:
    """What a living process has used; 0 where the system does not say."""
    if not (stat := Path(f"/proc/{pid}/stat")).exists():
        return 0.0
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_texts_are_those_of_transformers(process: TemplateProcess) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    template = "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + CHATML
    tokenizer = make_tokenizer(template)
    for prompt in (True, False):
        (result,) = process.render(
            template,
            tokenizer.special_tokens_map,
            [RenderJob(JOB.messages, tools, add_generation_prompt=prompt)],
        )
        assert isinstance(result, RenderResult)
        assert result.text == tokenizer.apply_chat_template(
            list(JOB.messages), tools=tools, add_generation_prompt=prompt, tokenize=False
        )


def test_generation_blocks_are_reported_as_spans_of_the_text(process: TemplateProcess) -> None:
    (result,) = process.render(MARKED, {}, [RenderJob(JOB.messages, with_generation_spans=True)])
    assert isinstance(result, RenderResult)
    ((start, end),) = result.generation_spans
    assert result.text[start:end] == "Hello<|im_end|>"


def test_a_refusal_is_of_one_conversation_only(process: TemplateProcess) -> None:
    template = "{% if messages[0].role == 'x' %}{{ raise_exception('No x') }}{% endif %}fine"
    odd = RenderJob(({"role": "x", "content": ""},))
    results = process.render(template, {}, [JOB, odd, JOB])
    assert [isinstance(each, TemplateRefused) for each in results] == [False, True, False]
    assert str(results[1]) == "No x"


@pytest.mark.parametrize(
    "payload", [*BOMBS, *(pytest.param(each, marks=pytest.mark.slow) for each in COSTLY_BOMBS)]
)
def test_a_bomb_ends_in_two_seconds_of_the_child_and_in_one_sentence(
    process: TemplateProcess, payload: str
) -> None:
    process.render(CHATML, {}, [JOB])
    assert process._child is not None
    at_start = cpu_seconds(process._child.pid)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    try:
        (result,) = process.render(CHATML + payload, {}, [JOB])
        assert isinstance(result, TemplateRefused), result.text[:99]
        assert "\n" not in str(result)[:80]
    except ModelError as error:
        assert str(error).startswith("The base's chat template")  # noqa: PT017
        assert "Choose another base" in error.hint  # noqa: PT017
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    of_the_dead = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert of_the_dead - at_start < 2.5
    ours = resource.getrusage(
        resource.RUSAGE_SELF
    )  # Linux lets a child begin with its parent's peak
    assert after.ru_maxrss <= max(512 * 1024, before.ru_maxrss, ours.ru_maxrss)
    assert time.monotonic() - started < 30


def test_a_bomb_in_a_base_is_a_sentence_and_the_next_base_is_rendered() -> None:
    bomb = make_tokenizer("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}")
    with pytest.raises(ModelError, match="chat template"):
        render_prompt(bomb, [Message("user", "Hi")])
    assert render_prompt(make_tokenizer(TEMPLATES["chatml"]), [Message("user", "Hi")])


def test_the_child_has_no_token_and_no_variable_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    process = TemplateProcess()
    process.render(CHATML, {}, [JOB])
    assert process._child is not None
    if os.path.exists(environment := f"/proc/{process._child.pid}/environ"):
        with open(environment, "rb") as variables:
            assert b"hf_secret" not in variables.read()
    process.close()
