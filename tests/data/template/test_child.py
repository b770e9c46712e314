"""The template process refuses exactly the attributes that Jinja's own sandbox refuses.

Its attribute lookup skips the sandbox's checks where they always pass. Here it is compared with the
sandbox, attribute by attribute and template by template.
"""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from jinja2 import Undefined
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment, unsafe
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup

from qlora_space.data.template.child import JINJA_VERSION, fast_getattr, sandboxed_getattr
from qlora_space.data.template.process import RenderJob, RenderResult, TemplateProcess

JOB = RenderJob(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}))
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ [].__class__.__base__.__subclasses__()[0] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os.system('id') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__closure__ }}",
    "{{ strftime_now.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ dict.__class__.__mro__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ '%s'.__mod__.__self__.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{{ messages.append(1) }}{{ messages.clear() }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
    "{{ ''['format'].__self__ }}{{ ('{0.__class__}' | attr('format'))(messages) }}",
    "{{ [1] | map('string') | map(attribute='format') | list }}",
    "{{ {'a': 1}.get.__self__.__class__ }}{{ {'a': 1}.get.__globals__ }}",
    "{{ {'__class__': 1}.__class__ }}{{ {'a': 1}.__init__.__self__ }}",
    "{{ {'update': 1}.update }}{{ {'a': 1}.update({'b': 2}) }}{{ {'a': 1}.pop('a') }}",
    "{% for m in messages %}{{ loop._iterator }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for m in messages %}{{ loop._recurse }}{{ loop.cycle.__func__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}{{ m._environment }}",
    "{{ hidden._secret }}{{ hidden.danger() }}{{ hidden.Inner.mro() }}",
    "{{ generator.gi_frame.f_globals }}{{ generator.gi_code }}",
)


class FastEnvironment(ImmutableSandboxedEnvironment):
    getattr = fast_getattr


class Text(str):
    """A str with more attributes than a str, one of them under another name."""

    __slots__ = ()
    _private = "private"
    public = "public"
    strip = str.format  # type: ignore


class Hidden:
    """What a template must not reach, and what it may."""

    class Inner:
        pass

    _secret = "secret"
    public = "public"

    @unsafe
    def danger(self) -> str:
        return "danger"


def numbers() -> Iterator[int]:
    yield 1


def objects() -> dict[str, Any]:
    """One of each kind that a template can hold."""
    macro = SandboxedEnvironment().from_string("{% macro m() %}{% endmacro %}").module.m  # type: ignore
    generator = numbers()
    return {
        "dict": {"role": "user", "content": "Hi"},
        "dict whose keys are attributes": dict.fromkeys(
            ("items", "update", "pop", "mro", "format", "_a", "__class__", "__globals__", "__a__"),
            1,
        ),
        "str": "text {0.__class__}",
        "empty str": "",
        "Markup": Markup("text"),
        "subclass of str": Text("text"),
        "subclass of dict": type("Dict", (dict,), {"_private": 1, "public": 2})(role="user"),
        "list": [1],
        "tuple": (1,),
        "set": {1},
        "int": 1,
        "bool": True,
        "None": None,
        "bytes": b"text",
        "range": range(2),
        "loop": LoopContext([1, 2], Undefined, None),
        "namespace": Namespace(a=1),
        "cycler": Cycler(1, 2),
        "joiner": Joiner(),
        "macro": macro,
        "undefined": Undefined(name="x"),
        "function": numbers,
        "method of str": "text".strip,
        "method of dict": {}.get,
        "method of an object": Hidden().danger,
        "object": Hidden(),
        "class": Hidden,
        "builtin class": int,
        "generator": generator,
        "frame": generator.gi_frame,
        "code": numbers.__code__,
        "module": re,
    }


ATTRIBUTES = (
    *("__class__", "__mro__", "__subclasses__", "__globals__", "__builtins__", "__self__", "__a__"),
    *(
        "__init__",
        "__getattribute__",
        "__dict__",
        "__func__",
        "__code__",
        "__closure__",
        "__wrapped__",
    ),
    *(
        "mro",
        "gi_frame",
        "gi_code",
        "cr_frame",
        "ag_frame",
        "f_globals",
        "f_back",
        "tb_frame",
        "co_code",
    ),
    *(
        "_private",
        "_secret",
        "_a",
        "_iterator",
        "_func",
        "public",
        "format",
        "format_map",
        "danger",
    ),
    *("items", "update", "pop", "clear", "append", "setdefault", "role", "content", "missing", ""),
)


def outcome(lookup: Any, value: Any, attribute: str) -> tuple[Any, ...]:
    """What a lookup gives, comparable: a refusal with its sentence, or a value with its type."""
    try:
        found = lookup(ImmutableSandboxedEnvironment(), value, attribute)
    except Exception as error:
        return "raised", type(error), str(error)
    if isinstance(found, Undefined) and found is not value:
        return (
            "refused",
            found._undefined_exception,
            found._undefined_message,
            found._undefined_name,
        )
    if callable(found):  # the sandbox wraps format anew each time
        return "callable", type(found), getattr(found, "__qualname__", None), found.__doc__
    return "value", type(found), repr(found)


@pytest.mark.parametrize("kind", objects())
def test_every_attribute_is_given_or_refused_as_by_the_sandbox_of_jinja(kind: str) -> None:
    value, jinja = objects()[kind], ImmutableSandboxedEnvironment.getattr
    attributes = {*dir(value), *ATTRIBUTES}
    fast = {name: outcome(fast_getattr, value, name) for name in attributes}
    assert fast == {name: outcome(jinja, value, name) for name in attributes}
    private = [name for name in dir(value) if name.startswith("_")]
    assert all(fast[name][0] != "callable" for name in private)


def rendered(environment: SandboxedEnvironment, template: str) -> tuple[Any, ...]:
    variables = {"hidden": Hidden(), "generator": numbers(), "messages": list(JOB.messages)}
    try:
        text = environment.from_string(template).render(variables)
    except Exception as error:
        return type(error), re.sub(r"0x\w+", "", str(error))
    return "text", re.sub(r"0x\w+", "", text)


@pytest.mark.parametrize("template", ESCAPES)
def test_an_escape_ends_as_in_the_sandbox_of_jinja(template: str) -> None:
    expected = rendered(ImmutableSandboxedEnvironment(), template)
    assert rendered(FastEnvironment(), template) == expected


def test_another_version_of_jinja_gets_its_own_lookup() -> None:
    assert sandboxed_getattr(JINJA_VERSION) is fast_getattr
    for other in ("3.1.5", "3.1.60", "3.2.0", "4.0", ""):
        assert sandboxed_getattr(other) is SandboxedEnvironment.getattr


def test_the_installed_jinja_is_the_version_that_the_fast_lookup_was_compared_with() -> None:
    """With another one templates are slower, nothing else: compare its sandbox.py, then raise the pin."""
    assert version("jinja2") == JINJA_VERSION


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


@pytest.mark.parametrize("payload", ESCAPES)
def test_an_escape_finds_no_way_out(process: TemplateProcess, payload: str) -> None:
    (result,) = process.render(payload, {}, [JOB])
    if isinstance(result, RenderResult):
        assert not any(word in result.text for word in ("root:", "uid=", "<class 'os", "Popen"))
