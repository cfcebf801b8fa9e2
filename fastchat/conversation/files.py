"""Template files: the templates they register, and the choice of one."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from fastchat.conversation import registry
from fastchat.conversation.schema import Place
from fastchat.conversation.template import TABLE, Template
from fastchat.conversation.upstream import FIELDS, Conversation
from fastchat.errors import SettingsError, say
from fastchat.security import load_yaml, special_kind

FLAG = "--conv_template_file"


def use_template_file(path: str | None, asked: str | None) -> str | None:
    """Register the templates of a file and return the name of the one to use. An implicit choice is printed.

    Args:
        path: as for `load_template_file`; None for no file.
        asked: the value of --conv_template.

    Returns: `asked`, or the file's only template; None without either.
    Raises: SettingsError as `load_template_file` does, and if the file has several templates and `asked` is None.
    """
    if not path:
        return asked
    names = load_template_file(path)
    listed = ", ".join(names)
    if asked is None and len(names) > 1:
        raise SettingsError(
            f"{FLAG} {path} has {len(names)} templates; choose one: --conv_template {' | '.join(names)}."
        )
    if asked is None:
        say(f"template: {listed}, the only one in {path} (--conv_template picks another)")
    elif asked not in names:
        say(f"{FLAG} {path} has {listed}; --conv_template {asked} is not in it")
    return names[0] if asked is None else asked


def load_template_file(path: str) -> list[str]:
    """Register the templates of a `.py` file (which calls register_conv_template) or of a `.yaml` file.

    A YAML file contains one template or a list of them, each with the fields of `Conversation` (name, roles, sep_style,
    sep, sep2 …) or of `Template` (name, user: {before, after, open}, assistant: {…} …).

    Returns: the registered names, in order.
    Raises: SettingsError for a missing file, another extension, an error in the file, a name that is already
        registered, or a file that registers nothing.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        kind = special_kind(file)
        raise SettingsError(f"{FLAG} {path}: {f'is {kind}; give a file' if kind else 'there is no such file'}.")
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
    """The templates of a YAML file, all of them valid and with new names."""
    content, source = load_yaml(file, FLAG), f"{FLAG} {path}: "
    tables = content if isinstance(content, list) else [] if content is None else [content]
    if not tables:
        raise SettingsError(f"{source}the file has no template; expected one such as {TABLE.example}.")
    made: dict[str, Conversation | Template] = {}
    for number, table in enumerate(tables, start=1):
        if not isinstance(table, dict):
            raise Place(source.removesuffix(": "), f"template {number}").wrong(table, f"one such as {TABLE.example}")
        template = _template(table, source)
        if template.name in made:
            raise SettingsError(f"{source}two templates are named {template.name!r}; rename one.")
        if template.name in registry.conv_templates:
            raise SettingsError(f"{source}template {template.name!r} already exists; choose another name.")
        made[template.name] = template
    return list(made.values())


def _template(table: dict[Any, Any], source: str) -> Conversation | Template:
    """Read a table as the form that more of its keys belong to."""
    if "user" in table or "assistant" in table or len(table.keys() & TABLE.kinds) > len(table.keys() & FIELDS.kinds):
        return Template.from_dict(table, source)
    conversation = Conversation.from_dict(table, source)
    try:
        conversation.to_template()
    except SettingsError as problem:  # a missing separator
        raise SettingsError(f"{source}{problem}") from None
    return conversation
