"""The Jinja environment of a tokenizer's own chat template: sandboxed, with the helpers that transformers documents."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from datetime import datetime
from typing import Any

from fastchat.data.encoding.messages import to_messages
from fastchat.data.encoding.probes import HARMLESS
from fastchat.data.encoding.template_limits import check_operands, joined, try_out
from fastchat.errors import SettingsError


class CompiledTemplate:
    """A Jinja template whose rendering is bounded (see template_limits.py)."""

    def __init__(self, source: str):
        self._template = _environment().from_string(source)

    def render(self, **names: Any) -> str:
        """The text. Raises what the template raises, and TooMuch (an ArithmeticError) if a limit is exceeded."""
        return joined(self._template.generate(**names))


@functools.cache
def compile_template(source: str) -> CompiledTemplate:
    """The template in the environment that transformers documents: sandboxed, with its helpers and tags.

    Raises SettingsError for invalid Jinja, or for a template that needs too much memory or time for simple dialogues.
    """
    import jinja2

    def simplest() -> None:
        template = CompiledTemplate(source)  # constants are computed here
        for dialogue, prompt in itertools.product(HARMLESS, (False, True)):
            with contextlib.suppress(*failures()):
                messages = to_messages(dialogue)
                template.render(messages=messages, add_generation_prompt=prompt, bos_token="", eos_token="")

    try_out(simplest, "the tokenizer's chat template")
    try:
        return CompiledTemplate(source)
    except jinja2.TemplateSyntaxError as error:
        raise SettingsError(f"the tokenizer's chat template is not valid Jinja: {error}") from error


@functools.cache
def variables(source: str) -> frozenset[str]:
    """The names of the variables that a template reads and does not set itself first."""
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_environment().parse(source)))


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that a template may raise: it is a program that divides, indexes, compares, and reaches limits."""
    from jinja2 import TemplateError

    return (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


@functools.cache
def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an answer for other tools; here the mark is ignored and its body rendered."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
