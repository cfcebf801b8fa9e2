"""Export of a template as a Jinja chat template, so that other software sends the prompt the model was trained on.

The text is built from the table; nothing is searched or replaced in a rendered dialogue. Literals pass through
`substitute`, which replaces the control strings by those of the tokenizer (`</s>` by its EOS).
"""

from __future__ import annotations

from collections.abc import Callable

from fastchat.conversation import jinja_calls
from fastchat.conversation.calls import TOOLS_SLOT
from fastchat.conversation.segments import RoleFormat
from fastchat.conversation.template import ROUND_SLOT, Template

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

    The result expects `messages` with roles system or developer (first only), user, assistant, tool (also function and
    observation), and honours `add_generation_prompt`. If the template can show calls, it takes `tools`, `tool_calls`
    (arguments as an object or as JSON text) and `tool_call_id` in OpenAI's form.
    """
    quote = lambda text: _quote(substitute(text))  # noqa: E731
    trim = " | trim" if template.content == "strip_all" else ""
    lines = [
        jinja_calls.macros(template),
        "{%- if messages and messages[0]['role'] in ['system', 'developer'] -%}",
        f"{{%- set system = messages[0]['content']{trim} -%}}{{%- set turns = messages[1:] -%}}",
        "{%- else -%}",
        f"{{%- set system = {_default(template, quote)} -%}}{{%- set turns = messages -%}}",
        "{%- endif -%}",
        _window(template),
        jinja_calls.schemas(template.tools, quote) + jinja_calls.place(template.tools) if template.tools else "",
        _header(template, quote),
        _opening(lead, space, written=bool(lead) and substitute(template.user.before).startswith(lead)),
        _examples(template, quote, eos),
        "{%- set count = namespace(rounds=0) -%}",
        "{%- set ids = namespace(known=[], waiting=[], at=-1, shown='', name='') -%}"
        if jinja_calls.has_ids(template)
        else "",
        "{%- for message in turns -%}",
        _assistant_branch(template, quote, eos),
        _other_branches(template, quote),
        "{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{{{{- {_prompt(template, quote)} -}}}}{{%- endif -%}}",
    ]
    return "".join(line for line in lines if line)


def _quote(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _default(template: Template, quote: Callable[[str], str]) -> str:
    """The default system message."""
    default = quote(template.system_message)
    if template.tools is None or template.tools.system_message is None:
        return default
    return f"({quote(template.tools.system_message)} if tools else {default})"


def _header(template: Template, quote: Callable[[str], str]) -> str:
    def chosen(tools: bool) -> str:
        with_message, without, _ = template.headers(tools, in_header=True)
        return f"({jinja_calls.header(with_message, quote)} if system else {jinja_calls.header(without, quote)})"

    condition = jinja_calls.header_condition(template)
    header = f"{chosen(True)} if {condition} else {chosen(False)}" if condition else chosen(False)
    return f"{{%- set header = {header} -%}}"


def _prompt(template: Template, quote: Callable[[str], str]) -> str:
    """The open prompt of the next answer."""
    prompt = quote(template.assistant.open)
    if template.after_tool:
        prompt = f"({quote(template.after_tool.open)} if {jinja_calls.is_result('turns[-1]')} else {prompt})"
        prompt = f"({prompt} if turns else {quote(template.assistant.open)})"
    if template.tools and template.tools.last_assistant:
        prompt = f"({quote(template.tools.last_assistant.open)} if tools else {prompt})"
    return prompt


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


def _text(template: Template) -> str:
    """The expression for a message's text. With calls, its content may be missing."""
    text = _CONTENT[template.content]
    return text.replace("message['content']", "(message['content'] or '')") if template.calls else text


def _assistant_branch(template: Template, quote: Callable[[str], str], eos: str) -> str:
    def said(wrap: RoleFormat) -> str:
        """What writes an answer, and its calls, in this format."""
        ending = quote(_ending(template, eos, wrap))
        if template.calls is None:
            return f"{{{{- {quote(wrap.before)} ~ ({_text(template)}) ~ {ending} -}}}}"
        rest = quote(wrap.before[len(wrap.open) :])
        return (
            f"{{{{- {quote(wrap.open)} ~ ({rest} ~ said if said or not calls else '') -}}}}"
            f"{jinja_calls.written_calls(template, template.calls, quote)}{{{{- {ending} -}}}}"
        )

    body = said(template.assistant)
    if template.after_tool:
        body = _choice(jinja_calls.after_result(), said(template.after_tool), body)
    if template.last_assistant:
        body = _choice("loop.last and not add_generation_prompt", said(template.last_assistant), body)
    if template.tools and template.tools.last_assistant:
        body = _choice("tools and loop.last and not add_generation_prompt", said(template.tools.last_assistant), body)
    if template.calls:
        taken = "{%- set calls = message['tool_calls'] if message['tool_calls'] else [] -%}"
        body = f"{taken}{{%- set said = ({_text(template)}) -%}}{body}"
    return "{%- if message['role'] in ['assistant', 'function_call'] -%}" + body


def _choice(condition: str, yes: str, no: str) -> str:
    return f"{{%- if {condition} -%}}{yes}{{%- else -%}}{no}{{%- endif -%}}"


def _other_branches(template: Template, quote: Callable[[str], str]) -> str:
    text = _text(template)

    def said(wrap: RoleFormat) -> str:
        """What writes the message of a user in this format."""
        before = jinja_calls.literal(wrap.before, {TOOLS_SLOT: "shown.tools"} if template.tools else {}, quote)
        if template.round_start is not None and ROUND_SLOT in wrap.before:
            left, right = wrap.before.split(ROUND_SLOT)
            before = f"{quote(left)} ~ (count.rounds + {template.round_start}) ~ {quote(right)}"
        return f"{{{{- {before} ~ ({text}) ~ {quote(wrap.after)} -}}}}"

    branches = []
    if template.tool:
        result = jinja_calls.written_result(template, template.tool, text, quote)
        branches.append(f"{{%- elif {jinja_calls.is_result('message')} -%}}{result}")
    if template.last_user:
        asked = "{%- elif loop.revindex == (1 if add_generation_prompt else 2) -%}"
        branches.append(asked + said(template.last_user))
    if template.first_user and not template.examples:
        branches.append("{%- elif loop.first -%}" + said(template.first_user))
    if template.tools and template.tools.user:
        branches.append("{%- elif tools and loop.index0 == place.at -%}" + said(template.tools.user))
    branches.append("{%- else -%}" + said(template.user))
    counting = "{%- if message['role'] == 'user' -%}{%- set count.rounds = count.rounds + 1 -%}{%- endif -%}"
    return "".join(branches) + "{%- endif -%}" + (counting if template.round_start is not None else "")
