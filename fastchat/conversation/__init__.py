"""Room: templates as data, rendering with spans, and upstream's public API. Standard library only.

A `Template` is an immutable table; `Template.render` applies it to a `Dialogue` and gives text together with the spans
the model has to generate. `Conversation` and `SeparatorStyle` are upstream's interface, kept because people's own
template files use it; a `Conversation` is translated into the table once, when it is registered.

    dialogue.py   Turn, Dialogue: who said what
    template.py   Template, Rendered: the table and the one loop that renders it
    styles.py     SeparatorStyle and its translation into the table
    upstream.py   Conversation: upstream's class
    builtin.py    the built-in templates and what is known of model families; the data is templates.json
    schema.py     what a table in a template file may hold, checked key by key
    registry.py   names, and which template fits a tokenizer
    files.py      template files, and which template of one is meant
    jinja.py      the same template as a Jinja chat template, for everyone else's software
"""

from typing import TYPE_CHECKING, Any

from fastchat.conversation import registry
from fastchat.conversation.dialogue import Dialogue, Turn
from fastchat.conversation.files import load_template_file, use_template_file
from fastchat.conversation.jinja import to_jinja
from fastchat.conversation.registry import (
    DEFAULT_TEMPLATE,
    OWN_TEMPLATE,
    choose_template,
    get_conv_template,
    get_template,
    register_conv_template,
    suggest_templates,
)
from fastchat.conversation.styles import SeparatorStyle
from fastchat.conversation.template import Rendered, RoleFormat, Segment, Template
from fastchat.conversation.upstream import Conversation

if TYPE_CHECKING:
    from fastchat.conversation.registry import conv_templates

__all__ = [
    "DEFAULT_TEMPLATE",
    "OWN_TEMPLATE",
    "Conversation",
    "Dialogue",
    "Rendered",
    "RoleFormat",
    "Segment",
    "SeparatorStyle",
    "Template",
    "Turn",
    "choose_template",
    "conv_templates",
    "get_conv_template",
    "get_template",
    "load_template_file",
    "register_conv_template",
    "suggest_templates",
    "to_jinja",
    "use_template_file",
]


def __getattr__(name: str) -> Any:
    """`conv_templates`, which is filled when somebody first asks for it."""
    return getattr(registry, name)
