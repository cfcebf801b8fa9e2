"""Template files: what they register, and which of their templates a command means."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from fastchat.conversation import registry
from fastchat.conversation.schema import Place
from fastchat.conversation.template import TABLE, Template
from fastchat.conversation.upstream import FIELDS, Conversation
from fastchat.errors import SettingsError, say
from fastchat.security import load_yaml

FLAG = "--conv_template_file"


def use_template_file(path: str | None, asked: str | None) -> str | None:
    """Register the templates of a file, and give the name of the one that is meant; what follows by itself is said.

    Args:
        path: as for `load_template_file`; None for no file.
        asked: the value of --conv_template.

    Returns: `asked`, else the file's only template; None without either.
    Raises: SettingsError as `load_template_file` does, and where the file holds several and none is asked for.
    """
    if not path:
        return asked
    names = load_template_file(path)
    listed = ", ".join(names)
    if asked is None and len(names) > 1:
        raise SettingsError(
            f"{FLAG} {path} holds {len(names)} templates; say which: --conv_template {' | '.join(names)}."
        )
    if asked is None:
        say(f"template: {listed}, the only one in {path} (--conv_template picks another)")
    elif asked not in names:
        say(f"{FLAG} {path} holds {listed}; --conv_template asks for {asked}, which is not in it")
    return names[0] if asked is None else asked


def load_template_file(path: str) -> list[str]:
    """Register the templates of a `.py` file (it calls register_conv_template) or of a `.yaml` file.

    A YAML file holds one template or a list of them, each with the fields of `Conversation` (name, roles, sep_style,
    sep, sep2 …) or of `Template` (name, user: {before, after, open}, assistant: {…} …).

    Returns: the names it registered, in order.
    Raises: SettingsError for a missing file, another ending, an error in the file, a name that is taken, or a file that
        registers nothing.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise SettingsError(f"{FLAG} {path}: there is no such file.")
    if file.suffix == ".py":
        return _run(file, path)
    if file.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"{FLAG} {path}: expected a .py or a .yaml file.")
    made = _read(file, path)
    for template in made:
        registry.register_conv_template(template)
    return [template.name for template in made]


def _run(file: Path, path: str) -> list[str]:
    before = dict(registry.conv_templates)
    try:
        runpy.run_path(str(file))
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{FLAG} {path} fails with {type(error).__name__}: {error}") from error
    names = [name for name, conv in registry.conv_templates.items() if before.get(name) is not conv]
    if not names:
        raise SettingsError(f"{FLAG} {path} registers no template; call register_conv_template in it.")
    return names


def _read(file: Path, path: str) -> list[Conversation | Template]:
    """The templates of a YAML file, all of them sound and with names of their own."""
    content, source = load_yaml(file, FLAG), f"{FLAG} {path}: "
    tables = content if isinstance(content, list) else [] if content is None else [content]
    if not tables:
        raise SettingsError(f"{source}it holds no template; expected one such as {TABLE.example}.")
    made: dict[str, Conversation | Template] = {}
    for number, table in enumerate(tables, start=1):
        if not isinstance(table, dict):
            raise Place(source.removesuffix(": "), f"template {number}").wrong(table, f"one such as {TABLE.example}")
        template = _template(table, source)
        if template.name in made:
            raise SettingsError(f"{source}template {template.name!r} is in it twice; choose another name.")
        if template.name in registry.conv_templates:
            raise SettingsError(f"{source}there is already a template {template.name!r}; choose another name.")
        made[template.name] = template
    return list(made.values())


def _template(table: dict[Any, Any], source: str) -> Conversation | Template:
    """The table's template, by the form that more of its keys belong to."""
    if "user" in table or "assistant" in table or len(table.keys() & TABLE.kinds) > len(table.keys() & FIELDS.kinds):
        return Template.from_dict(table, source)
    conversation = Conversation.from_dict(table, source)
    try:
        conversation.to_template()
    except SettingsError as problem:  # a separator that its style needs
        raise SettingsError(f"{source}{problem}") from None
    return conversation
