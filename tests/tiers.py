"""The cases of a large family that the default test run includes; `--thorough` includes all of them.

Most template tables differ only in their strings. `KINDS` has one of each kind: the first whose turns begin, end and
follow one another in this way. They are derived from the tables, so that a new kind is tested automatically.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import hypothesis
import pytest

from fastchat.conversation import conv_templates, get_template
from tests.builders import TOKENIZER_KINDS

# Real ones in ../shared; tests that need them are skipped if it does not exist.
SHARED = ("tokenizers/llama-2", "tokenizers/gemma", "tokenizers/llama-3", "tokenizers/qwen2.5", "models/stories260K")
ALL_TOKENIZERS = (*TOKENIZER_KINDS, *SHARED)
TEMPLATES = tuple(name for name, conv in conv_templates.items() if conv.sep_style or conv.template)
# Number of examples, by tier, of a property that does not set its own.
DEFAULT_EXAMPLES, THOROUGH_EXAMPLES = 40, 400
# Keys in which tables differ without changing how their turns meet.
_WORDS = {"name", "origin", "system_message", "stop_strings", "stop_token_ids"}


def _shape(value: Any) -> Any:
    """A text's first and last character by class (space, bracket of a control token, other); of a list, whether any."""
    if isinstance(value, str):
        return "".join("s" if c.isspace() else "c" if c in "<>[]" else "w" for c in (value[:1], value[-1:]) if c)
    if isinstance(value, dict):
        return tuple((key, _shape(inner)) for key, inner in sorted(value.items()))
    return bool(value) if isinstance(value, list) else value


@functools.cache
def kinds() -> tuple[str, ...]:
    """The first template of every kind."""
    first: dict[Any, str] = {}
    for name in TEMPLATES:
        table = get_template(name).to_dict()
        first.setdefault(_shape({key: value for key, value in table.items() if key not in _WORDS}), name)
    return tuple(first.values())


KINDS = kinds()


def thorough(*values: Any, in_default: bool) -> Any:
    """A parameter set that the default run includes only if `in_default`."""
    return pytest.param(*values, marks=() if in_default else pytest.mark.thorough)


def pairs(ones: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """Every (one, other). The default run has enough of them for each value to occur: the first with the first, the
    second with the second, cycling through the shorter list."""
    ones, others = list(ones), list(others)
    together = [(ones[i % len(ones)], others[i % len(others)]) for i in range(max(len(ones), len(others)))]
    return [thorough(*pair, in_default=pair in together) for pair in itertools.product(ones, others)]


def template_cases(tokenizers: Sequence[str], everywhere: Sequence[str] = ()) -> list[Any]:
    """(tokenizer, template) of every template with every tokenizer. The default run has each kind of template with the
    tokenizers `everywhere` and with one more, so that each of `tokenizers` is used in turn."""
    turn = {name: tokenizers[i % len(tokenizers)] for i, name in enumerate(KINDS)}
    return [
        thorough(
            *(tokenizer, template),
            in_default=template in turn and (tokenizer in everywhere or tokenizer == turn[template]),
        )
        for template, tokenizer in itertools.product(TEMPLATES, tokenizers)
    ]


def examples(number: int) -> int:
    """How many examples of a property to try in this tier; `number` is the default tier's."""
    profile = hypothesis.settings.default
    assert profile is not None
    return max(1, number * profile.max_examples // DEFAULT_EXAMPLES)
