"""A chat template of a few characters that asks for gigabytes, or never ends, is refused in bounded memory and time."""

from __future__ import annotations

import resource
import time

import pytest

from fastchat.data.encoding import template_limits
from fastchat.data.encoding.tokenizer_template import compile_template
from fastchat.errors import SettingsError

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}"
MEMORY = [
    "{{ 'x' | center(10000000000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:10000000000d}'.format(1) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ 'x' | indent(10000000000, true) }}",
    "{{ [1] | batch(1000000000, 0) | list }}",
    "{% set ns = namespace(t='xxxxxxxxxxxxxxxx') %}{% for i in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "{% set t %}" + LOOPS + "{% endset %}",
    "{% macro f() %}" + LOOPS + "{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("source", MEMORY, ids=range(len(MEMORY)))
def test_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MEMORY", 1 << 27)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(SettingsError, match="chat template takes more than .* for a dialogue of two words"):
        compile_template(PLAIN + source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    assert time.monotonic() - start < 30


def test_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.5)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(SettingsError, match="chat template takes more than 0 seconds|takes more than 1 seconds"):
        compile_template(loops)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'x' * 10**10 }}", "it repeats a text or list 10,000,000,000 times"),
        ("{{ 10**9 * [1] }}", "it repeats a text or list 1,000,000,000 times"),
        ("{{ 10 ** 99999999 }}", "it raises a number to a huge power"),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "it writes more than 256,000 characters"),
        ("{% if messages[0].content == 'now' %}{{ 'x' * 10**10 }}{% endif %}", "it repeats a text"),
    ],
)
def test_what_one_record_asks_for(source: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "_MOST_WRITTEN", 256_000)
    template = compile_template(source + "{# bounded #}")
    with pytest.raises(template_limits.TooMuch, match=reason):
        template.render(messages=[{"role": "user", "content": "now"}])


def test_ordinary_arithmetic_is_within_the_limits() -> None:
    assert compile_template("{{ 2 ** 3 }}{{ 'ab' * 2 }}" + PLAIN).render(messages=[{"content": "Hi"}]) == "8ababHi"
