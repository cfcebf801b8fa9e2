"""Chat templates as data, rendering with spans, and upstream's public API. Standard library only.

A `Template` is an immutable table; `Template.render` applies it to a `Dialogue` and returns text together with the
spans that the model has to generate. `Conversation` and `SeparatorStyle` are upstream's interface, kept because users'
template files depend on it; a `Conversation` is translated into the table once, when it is registered.

    dialogue.py   Turn, ToolCall, Dialogue: the messages and their roles
    template.py   Template, Rendered: the table and the one loop that renders it
    segments.py   RoleFormat, Segment: the text around a message, the pieces of a rendered dialogue
    calls.py      tools, calls and results: their part of a table, and their segments
    python_stubs.py  a tool as a Python function, as one family shows it
    styles.py     SeparatorStyle and its translation into the table
    upstream.py   Conversation: upstream's class
    builtin.py    the built-in templates and facts about model families; the data is templates.json
    schema.py     the keys of a table in a template file, and their checks
    registry.py   names, and which template fits a tokenizer
    files.py      template files, and the choice of a template in one
    jinja.py      export of a template as a Jinja chat template, for other software
    jinja_calls.py   the part of it for tools, calls and results
"""

from typing import TYPE_CHECKING, Any

from fastchat.conversation import registry
from fastchat.conversation.calls import CallsFormat, RefusedByTemplate, ResultFormat, ToolsFormat
from fastchat.conversation.dialogue import Dialogue, ToolCall, Turn
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
    templates_with_calls,
)
from fastchat.conversation.segments import RoleFormat, Segment
from fastchat.conversation.styles import SeparatorStyle
from fastchat.conversation.template import Rendered, Template
from fastchat.conversation.upstream import Conversation
from fastchat.upstream_names import refuse

if TYPE_CHECKING:
    from fastchat.conversation.registry import conv_templates

__all__ = [
    "DEFAULT_TEMPLATE",
    "OWN_TEMPLATE",
    "CallsFormat",
    "Conversation",
    "Dialogue",
    "RefusedByTemplate",
    "Rendered",
    "ResultFormat",
    "RoleFormat",
    "Segment",
    "SeparatorStyle",
    "Template",
    "ToolCall",
    "ToolsFormat",
    "Turn",
    "choose_template",
    "conv_templates",
    "get_conv_template",
    "get_template",
    "load_template_file",
    "register_conv_template",
    "suggest_templates",
    "templates_with_calls",
    "to_jinja",
    "use_template_file",
]


_missing = refuse(__name__)


def __getattr__(name: str) -> Any:
    """`conv_templates` is filled on first use; for other names of upstream, the error says what to use instead."""
    return registry.conv_templates if name == "conv_templates" else _missing(name)
