"""Template names: looking them up, registering new ones, and finding those that fit a model."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastchat.conversation.builtin import builtin
from fastchat.conversation.template import CONTROL_PATTERN, Template
from fastchat.conversation.upstream import Conversation
from fastchat.errors import SettingsError, nearest, say

DEFAULT_TEMPLATE = "vicuna_v1.1"
OWN_TEMPLATE = "tokenizer"  # the name that means the tokenizer's own template

if TYPE_CHECKING:
    conv_templates: dict[str, Conversation]

_conversations: dict[str, Conversation] = {}
_tables: dict[str, Template] = {}


def __getattr__(name: str) -> Any:
    """`conv_templates` is filled on first use."""
    if name == "conv_templates":
        return _known()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def _known() -> dict[str, Conversation]:
    """All registered conversations, by name; the built-in ones come first."""
    for template in builtin().templates:
        _register(template)
    return _conversations


def register_conv_template(template: Conversation | Template, override: bool = False) -> None:
    """Register a template under its name.

    Raises:
        SettingsError: the name is already registered (and `override` is False), the template cannot be written as a
            table, or one of its values has the wrong type.
    """
    name = template.name
    if name == OWN_TEMPLATE:
        raise SettingsError(f"template {name!r}: this name means the tokenizer's own template; choose another name.")
    if name in _known() and not override:
        raise SettingsError(
            f"template {name!r} is already registered; choose another name, or pass override=True to replace it."
        )
    _register(template)


def _register(template: Conversation | Template) -> None:
    name, table = template.name, None
    if isinstance(template, Template):
        table, template = template, Conversation.from_template(template)
    elif template.sep_style is not None:  # otherwise it belongs to a remote API: a name of upstream, not for training
        table = template.to_template()
    if table is not None:
        Template.from_dict(table.to_dict())  # as it will be read from a saved model folder
        _tables[name] = table
    _conversations[name] = template


def get_conv_template(name: str) -> Conversation:
    """A new conversation with the template `name` (upstream's interface)."""
    known = _known()
    if name not in known:
        get_template(name)  # raises, with the nearest names
    return known[name].copy()


def get_template(name: str) -> Template:
    """The table of the template `name`. Raises SettingsError with the nearest known names."""
    known, data = _known(), builtin()
    if name in _tables:
        return _tables[name]
    if name in known or name in data.remote:
        raise SettingsError(f"--conv_template {name!r} belongs to a remote API; no local model is trained with it.")
    if name in data.tokenizer:
        raise SettingsError(
            f"--conv_template {name!r}: use --conv_template tokenizer. The tokenizer's own template is {name}'s, and "
            f"it cannot be written as a table: {data.tokenizer[name]}."
        )
    near = nearest(name, [*_tables, *data.tokenizer])
    hint = f"Nearest: {', '.join(near)}." if near else f"Known ones include {', '.join(list(_tables)[:16])}."
    raise SettingsError(
        f"--conv_template {name!r} is not a known template. {hint} "
        "To use your own, give --conv_template_file my.py|my.yaml."
    )


def templates_with_calls() -> list[str]:
    """The names of the tables that can show tools and their calls. (A tokenizer's own template may, too.)"""
    _known()
    return [name for name, table in _tables.items() if table.shows_calls]


def control_strings(template: Template) -> set[str]:
    """The strings in a template's own text that look like control tokens, except `<s>` and `</s>`."""
    found = {s for text in template.literals(tools=False) for s in CONTROL_PATTERN.findall(text)}
    return found - {"<s>", "</s>"}


def suggest_templates(vocabulary: set[str], chat_template: str | None = None, model_name: str = "") -> list[str]:
    """Names of the templates that fit a model, best first.

    Args:
        vocabulary: all token strings of the tokenizer.
        chat_template: the tokenizer's Jinja chat template.
        model_name: the model's folder or hub name.
    """
    _known()
    lower, data = model_name.lower(), builtin()
    named = next((name for words, name in data.by_name if all(word in lower for word in words)), None)
    found = ["tokenizer" if named in data.tokenizer else named] if named else []
    own = chat_template or ""
    written = [name for name, t in _tables.items() if _written_in(t, own)]
    # Many families share the same turns; a default system message, the longer the better, identifies one family.
    said = {name: _tables[name].system_message for name in written}
    found += sorted((n for n in written if said[n] and said[n] in own), key=lambda n: -len(said[n]))
    for name, template in _tables.items():
        needed = control_strings(template)
        if needed and needed <= vocabulary:
            found.append(name)
    return list(dict.fromkeys([*found, *written]))


def _written_in(template: Template, chat_template: str) -> bool:
    """Whether a Jinja text contains both turn openings of a template, however it escapes newlines."""
    text = chat_template.replace("\\n", "\n")
    marks = {template.user.open.strip(), template.assistant.open.strip()}
    return all(len(mark) > 3 and mark in text for mark in marks)


def choose_template(
    name: str | None, *, vocabulary: set[str], chat_template: str | None = None, model_name: str = ""
) -> Template:
    """The template of a run: the requested one, or the default if nothing suggests another template.

    Raises:
        SettingsError: an unknown name; or no name, although the tokenizer has its own chat template or the model
            belongs to a known chat family. The message suggests the templates that fit.
    """
    if name:
        return get_template(name)
    fitting = suggest_templates(vocabulary, chat_template, model_name)
    if chat_template or fitting:
        why = "the tokenizer has its own chat template" if chat_template else "the model belongs to a known chat family"
        if chat_template:
            fitting = ["tokenizer (its own)", *(name for name in fitting if name != "tokenizer")]
        names = ", ".join(fitting[:4]) or f"none of the {len(_tables)} built-in ones"
        raise SettingsError(
            f"--conv_template is not given, and the default, {DEFAULT_TEMPLATE}, does not fit: {why}. "
            f"Templates that fit: {names}. Give --conv_template NAME, or --conv_template {DEFAULT_TEMPLATE} to use the "
            "default anyway, or define your own with --conv_template_file."
        )
    say(f"template: {DEFAULT_TEMPLATE} (the default; --conv_template picks another)")
    return get_template(DEFAULT_TEMPLATE)
