"""Export of a template as a Jinja chat template, so that other software sends the prompt the model was trained on.

The text is built from the table; nothing is searched or replaced in a rendered dialogue. Literals pass through
`substitute`, which replaces the control strings by those of the tokenizer (`</s>` by its EOS).
"""

from __future__ import annotations

from collections.abc import Callable

from fastchat.conversation.template import ROUND_SLOT, SYSTEM_SLOT, RoleFormat, Template

_CONTENT = {
    "as_is": "message['content']",
    "strip": "message['content'] | trim",
    "strip_all": "message['content'] | trim",
    "rwkv": "message['content'] | replace('\\r\\n', '\\n') | replace('\\n\\n', '\\n')",
}


def to_jinja(
    template: Template, substitute: Callable[[str], str] = str, lead: str = "", space: bool = False, eos: str = ""
) -> str:
    """Write `template` as the text of a `chat_template.jinja`.

    Args:
        substitute: maps a literal of the template to the text for this tokenizer.
        lead: the text at the very start (the BOS that the tokenizer adds itself when it encodes plain text).
        space: write a space after `lead` unless one follows anyway: for a tokenizer that adds one before the very
            first text, but not after a BOS that is part of the text (llama-2).
        eos: the EOS string to end an answer with if the template's text has no stop.

    The result expects `messages` with roles system (first only), user, assistant, tool (also function and
    observation), and honours `add_generation_prompt`.
    """
    quote = lambda text: _quote(substitute(text))  # noqa: E731
    header_before, header_after = template.system.split(SYSTEM_SLOT)
    trim = " | trim" if template.content == "strip_all" else ""
    lines = [
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        f"{{%- set system = messages[0]['content']{trim} -%}}{{%- set turns = messages[1:] -%}}",
        "{%- else -%}",
        f"{{%- set system = {quote(template.system_message)} -%}}{{%- set turns = messages -%}}",
        "{%- endif -%}",
        _window(template),
        f"{{%- set header = {quote(header_before)} + system + {quote(header_after)} if system",
        f" else {quote(template.no_system)} -%}}",
        _opening(lead, space, written=bool(lead) and substitute(template.user.before).startswith(lead)),
        _examples(template, quote, eos),
        "{%- set count = namespace(rounds=0) -%}",
        "{%- for message in turns -%}",
        _assistant_branch(template, quote, eos),
        _other_branches(template, quote),
        "{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{{{{- {quote(template.assistant.open)} -}}}}{{%- endif -%}}",
    ]
    return "".join(line for line in lines if line)


def _quote(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _examples(template: Template, quote: Callable[[str], str], eos: str) -> str:
    parts = []
    for i, turn in enumerate(template.examples):
        if turn.role == "assistant":
            parts += [template.assistant.before, turn.text, _ending(template, eos, template.assistant)]
        else:
            wrap = template.first_user if i == 0 and template.first_user else template.user
            parts += [wrap.before, turn.text, wrap.after]
    return f"{{{{- {quote(''.join(parts))} -}}}}" if parts else ""


def _opening(lead: str, space: bool, written: bool) -> str:
    """BOS and header; without a header no BOS if the first turn has its own (internlm-chat)."""
    spaced = " ~ ('' if header.startswith(' ') else ' ')" if space else ""
    if not lead:
        return "{{- header -}}"
    if written:
        return f"{{%- if header -%}}{{{{- {_quote(lead)}{spaced} ~ header -}}}}{{%- endif -%}}"
    return f"{{{{- {_quote(lead)}{spaced} ~ header -}}}}"


def _window(template: Template) -> str:
    if not template.window:
        return ""
    return f"{{%- set turns = turns[-({template.window} - (1 if add_generation_prompt else 0)):] -%}}"


def _ending(template: Template, eos: str, wrap: RoleFormat) -> str:
    """The text after an answer: the template's, preceded by EOS if that text has no stop."""
    return wrap.after if template.stop else eos + wrap.after


def _assistant_branch(template: Template, quote: Callable[[str], str], eos: str) -> str:
    text = _CONTENT[template.content]

    def said(wrap: RoleFormat) -> str:
        return f"{{{{- {quote(wrap.before)} ~ ({text}) ~ {quote(_ending(template, eos, wrap))} -}}}}"

    body = said(template.assistant)
    if template.last_assistant:
        last = said(template.last_assistant)
        body = f"{{%- if loop.last and not add_generation_prompt -%}}{last}{{%- else -%}}{body}{{%- endif -%}}"
    return "{%- if message['role'] in ['assistant', 'function_call'] -%}" + body


def _other_branches(template: Template, quote: Callable[[str], str]) -> str:
    text = _CONTENT[template.content]

    def said(wrap: RoleFormat) -> str:
        before = quote(wrap.before)
        if template.round_start is not None and ROUND_SLOT in wrap.before:
            left, right = wrap.before.split(ROUND_SLOT)
            before = f"{quote(left)} ~ (count.rounds + {template.round_start}) ~ {quote(right)}"
        return f"{{{{- {before} ~ ({text}) ~ {quote(wrap.after)} -}}}}"

    branches = []
    if template.last_user:
        asked = "{%- elif loop.revindex == (1 if add_generation_prompt else 2) -%}"
        branches.append(asked + said(template.last_user))
    if template.first_user and not template.examples:
        branches.append("{%- elif loop.first -%}" + said(template.first_user))
    if template.tool:
        branches.append("{%- elif message['role'] != 'user' -%}" + said(template.tool))
    branches.append("{%- else -%}" + said(template.user))
    counting = "{%- if message['role'] == 'user' -%}{%- set count.rounds = count.rounds + 1 -%}{%- endif -%}"
    return "".join(branches) + "{%- endif -%}" + (counting if template.round_start is not None else "")
