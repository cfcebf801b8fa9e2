"""The parts of an exported Jinja template that write tools, calls and results, as calls.py does.

Other software may pass a call's arguments as JSON text instead of an object. Jinja cannot parse JSON, so `json_text`
writes such a text again with the white space and the escapes of `tojson`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fastchat.conversation.calls import (
    GENERATED_ID,
    LEAST_ID,
    SYSTEM_SLOT,
    TOOLS_SLOT,
    CallsFormat,
    ResultFormat,
    ToolsFormat,
)
from fastchat.conversation.template import Template

Quote = Callable[[str], str]
# A Jinja test on the role of a message: everything else is a tool's result.
NOT_A_RESULT = "['user', 'assistant', 'function_call']"

# \uXXXX as the character itself, other than control characters, quotes and backslashes.
_UNESCAPED = (
    "{%- macro unescaped(text) -%}{%- set high = namespace(code=0) -%}"
    r"{%- for whole in text.split('\\\\') -%}{{- '' if loop.first else '\\\\' -}}"
    r"{%- for part in whole.split('\\u') -%}"
    r"{%- if loop.first -%}{{- part.replace('\\/', '/') -}}{%- else -%}"
    "{%- set code = part[:4] | int(0, 16) -%}"
    "{%- if 55296 <= code < 56320 -%}{%- set high.code = code -%}"
    "{%- elif 56320 <= code < 57344 -%}{{- '%c' | format((high.code - 55296) * 1024 + code + 9216) -}}"
    r"{%- elif code < 32 or code in [34, 92] -%}{{- '\\u' ~ part[:4] -}}"
    "{%- else -%}{{- '%c' | format(code) -}}{%- endif -%}"
    r"{{- part[4:].replace('\\/', '/') -}}"
    "{%- endif -%}{%- endfor -%}{%- endfor -%}{%- endmacro -%}"
)
_JSON_TEXT = (
    "{%- macro json_text(value) -%}"
    "{%- if value is string and (value | trim)[:1] in ['{', '['] -%}"
    "{%- set at = namespace(depth=0, fresh=false, quoted=false, escaped=false) -%}"
    "{%- for c in unescaped(value) -%}"
    "{%- if at.quoted -%}{{- c -}}"
    r"""{%- if at.escaped -%}{%- set at.escaped = false -%}{%- elif c == '\\' -%}{%- set at.escaped = true -%}"""
    """{%- elif c == '"' -%}{%- set at.quoted = false -%}{%- endif -%}"""
    r"{%- elif c not in [' ', '\t', '\n', '\r'] -%}"
    "{%- if c in '}]' -%}{%- set at.depth = at.depth - 1 -%}{{- '' if at.fresh else LINE -}}"
    "{%- elif at.fresh -%}{{- LINE -}}{%- endif -%}"
    "{%- set at.fresh = c in '{[' -%}{{- c -}}"
    "{%- if at.fresh -%}{%- set at.depth = at.depth + 1 -%}{%- elif c == ':' -%}{{- ' ' -}}"
    "{%- elif c == ',' -%}{{- NEXT -}}"
    """{%- elif c == '"' -%}{%- set at.quoted = true -%}{%- endif -%}"""
    "{%- endif -%}{%- endfor -%}"
    "{%- elif value is defined and value != '' -%}{{- value | TOJSON -}}{%- else -%}{{- '{}' -}}{%- endif -%}"
    "{%- endmacro -%}"
)
_JSON_VALUE = (
    "{%- macro json_value(said) -%}"
    "{%- if said in ['true', 'false', 'null'] or said[:1] ~ said[-1:] in ['{}', '[]']"
    """ or (said | length > 1 and said[:1] ~ said[-1:] == '""') or said | int | string == said"""
    " or (said | float | string == said and said not in ['nan', 'inf', '-inf']) -%}"
    "{{- said -}}{%- else -%}{{- said | tojson -}}{%- endif -%}{%- endmacro -%}"
)
_PYTHON_STUB = (
    "{%- macro python_type(schema) -%}"
    "{%- set kind = schema['type'] if schema is mapping and 'type' in schema else none -%}"
    "{%- if kind is string -%}"
    "{%- if kind == 'array' -%}{{- 'List[' ~ python_type(schema['items']) ~ ']' -}}"
    "{%- elif kind == 'object' -%}{{- 'Dict[str, ' ~ python_type(schema['additionalProperties']) ~ ']' -}}"
    "{%- else -%}{{- {'string': 'str', 'number': 'float', 'integer': 'int', 'boolean': 'bool'}.get(kind, 'Any') -}}"
    "{%- endif -%}"
    "{%- elif kind is sequence and kind is not mapping -%}{{- 'Union[' -}}{%- for one in kind -%}"
    "{{- ('' if loop.first else ',') ~ python_type({'type': one}) -}}{%- endfor -%}{{- ']' -}}"
    "{%- else -%}{{- 'Any' -}}{%- endif -%}{%- endmacro -%}"
    "{%- macro python_stub(function) -%}"
    "{%- set schema = function['parameters'] if function['parameters'] is mapping else {} -%}"
    "{%- set fields = schema['properties'] if schema['properties'] is mapping else {} -%}"
    "{%- set needed = schema['required'] if schema['required'] else [] -%}"
    r"{{- '```python\ndef ' ~ function['name'] ~ '(' -}}"
    "{%- for name in fields -%}{{- ('' if loop.first else ', ') ~ name ~ ': ' -}}"
    "{{- python_type(fields[name]) if name in needed else 'Optional[' ~ python_type(fields[name]) ~ '] = None' -}}"
    "{%- endfor -%}"
    r"""{{- ') -> List[Dict]:\n    \"\"\"' ~ function['description'] -}}"""
    r"{%- for name in fields -%}{{- '\n\n    Args:\n        ' if loop.first else '\n        ' -}}"
    "{%- set kind = python_type(fields[name]) -%}"
    "{{- name ~ ' (' ~ (kind if name in needed else 'Optional[' ~ kind ~ ']') ~ '): ' -}}"
    "{{- (fields[name]['description'] if fields[name] is mapping else '') -}}{%- endfor -%}"
    r"""{{- '\n    \"\"\"\n    pass\n```' -}}{%- endmacro -%}"""
)


def macros(template: Template) -> str:
    """What the other parts call."""
    calls, tools = template.calls, template.tools
    if calls is None or tools is None:
        return ""
    line, following = "''", "' '"
    if calls.indent is not None:
        line = following = rf"('\n' ~ ' ' * ({calls.indent} * at.depth))"
    text = _JSON_TEXT.replace("LINE", line).replace("NEXT", following).replace("TOJSON", _tojson(calls.indent))
    found = _UNESCAPED + text
    if template.tool and template.tool.content == "json_value":
        found += _JSON_VALUE
    return found + (_PYTHON_STUB if tools.schema == "python" else "")


def schemas(tools: ToolsFormat, quote: Quote) -> str:
    """Set `shown.tools`, the text of all schemas."""
    inner = "(tool['function'] if tool['function'] is defined else tool)"
    made = f"python_stub({inner})"
    if tools.schema != "python":
        made = f"({'tool' if tools.schema == 'tool' else inner} | {_tojson(tools.indent)})"
    return (
        "{%- set shown = namespace(tools='') -%}{%- if tools -%}{%- for tool in tools -%}"
        f"{{%- set shown.tools = shown.tools ~ ('' if loop.first else {quote(tools.separator)}) ~ {made} -%}}"
        "{%- endfor -%}{%- endif -%}"
    )


def place(tools: ToolsFormat) -> str:
    """Set `place.at`, the index of the user message that shows the tools."""
    if tools.where == "system":
        return ""
    condition = "message['role'] == 'user'" + (" and place.at < 0" if tools.where == "first_user" else "")
    return (
        "{%- set place = namespace(at=-1) -%}{%- for message in turns -%}"
        f"{{%- if {condition} -%}}{{%- set place.at = loop.index0 -%}}{{%- endif -%}}{{%- endfor -%}}"
    )


def header_condition(template: Template) -> str:
    """When the header is that of a dialogue with tools; "" for never."""
    tools = template.tools
    if tools is None:
        return ""
    if tools.where == "system" or TOOLS_SLOT not in tools.system:
        return "tools"
    return "tools and place.at == 0" if template.first_user else ""


def literal(text: str, values: Mapping[str, str], quote: Quote) -> str:
    """A Jinja expression for a literal with slots; `values` are the expressions for them.

    >>> literal("a{id}b", {"{id}": "message['id']"}, repr)
    "'a' ~ message['id'] ~ 'b'"
    """
    parts = re.split("(" + "|".join(re.escape(slot) for slot in values) + ")", text) if values else [text]
    return " ~ ".join(values.get(part) or quote(part) for part in parts if part) or "''"


def header(text: str, quote: Quote) -> str:
    """An expression for a header."""
    return literal(text, {SYSTEM_SLOT: "system", TOOLS_SLOT: "shown.tools"}, quote)


def has_ids(template: Template) -> bool:
    """Whether ids of calls, or the names of the tools of results, are shown anywhere."""
    wrap = template.tool
    texts = (wrap.before, wrap.after, wrap.separator or "") if wrap else ()
    named = any("{name}" in text for text in texts)
    return bool(template.calls) and (named or any("{id}" in text for text in (template.calls.call, *texts)))


def written_calls(template: Template, calls: CallsFormat, quote: Quote) -> str:
    """The calls of `message`, after its text `said`."""
    values = {"{name}": "function['name']", "{arguments}": "arguments", "{id}": "ids.shown"}
    arguments = "json_text(function['arguments'])"
    if calls.margin:
        arguments += f".replace('\\n', {quote(chr(10) + ' ' * calls.margin)})"
    numbered = has_ids(template)
    parts = [
        "{%- if calls -%}",
        _refusal("calls | length > 1", "one tool call per answer") if not calls.parallel else "",
        _refusal("said", "either text or tool calls in an answer") if not calls.with_text else "",
        "{%- set ids.waiting = [] -%}" if numbered else "",
        f"{{{{- ({quote(calls.after_text)} if said else '') ~ {quote(calls.before)} -}}}}",
        "{%- for call in calls -%}",
        "{%- set function = call['function'] if call['function'] is defined else call -%}",
        f"{{%- set arguments = {arguments} -%}}",
        _numbered(calls) if numbered else "",
        f"{{{{- ('' if loop.first else {quote(calls.separator)}) ~ {literal(calls.call, values, quote)} -}}}}",
        f"{{%- endfor -%}}{{{{- {quote(calls.after)} -}}}}{{%- endif -%}}",
    ]
    return "".join(parts)


def written_result(template: Template, wrap: ResultFormat, text: str, quote: Quote) -> str:
    """The result in `message`; `text` is the expression for its text."""
    numbered = has_ids(template) and template.calls is not None
    values = {
        "{id}": "ids.shown" if numbered else "(message['tool_call_id'] or '')",
        "{name}": "(message['name'] or ids.name)" if numbered else "(message['name'] or '')",
    }
    raw = "(message['content'] or '')"
    said = {"json": f"({raw} | tojson)", "json_value": f"json_value({raw})"}.get(wrap.content, f"({text})")
    before, after = literal(wrap.before, values, quote), literal(wrap.after, values, quote)
    if wrap.separator is not None:
        between = literal(wrap.separator, values, quote)
        before = f"(({between}) if loop.previtem is defined and {is_result('loop.previtem')} else ({before}))"
        after = f"('' if loop.nextitem is defined and {is_result('loop.nextitem')} else ({after}))"
    return (
        _answered(template.calls) if numbered and template.calls else ""
    ) + f"{{{{- {before} ~ {said} ~ {after} -}}}}"


def after_result() -> str:
    """The condition that `message` follows a result."""
    return f"loop.previtem is defined and {is_result('loop.previtem')}"


def is_result(message: str) -> str:
    """The condition that a message is the result of a tool."""
    return f"{message}['role'] not in {NOT_A_RESULT}"


def _numbered(calls: CallsFormat) -> str:
    """Set `ids.shown` for a call."""
    shown = _fitting(calls, "call['id']")
    return (
        f"{{%- set ids.shown = {shown} -%}}"
        "{%- set ids.waiting = ids.waiting + [ids.known | length] -%}"
        "{%- set given = call['id'] if call['id'] is defined else none -%}"
        "{%- set ids.known = ids.known + [[given, ids.shown, function['name']]] -%}"
    )


def _answered(calls: CallsFormat) -> str:
    """Set `ids.shown` and `ids.name` for a result, as `CallsFormat.shown_ids` finds them."""
    shown = _fitting(calls, "message['tool_call_id']")
    return (
        "{%- set ids.at = ids.waiting[0] if ids.waiting else -1 -%}"
        "{%- for k in ids.waiting | reverse -%}{%- if ids.known[k][2] == message['name'] -%}{%- set ids.at = k -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- for call in ids.known -%}{%- if call[0] is not none and call[0] == message['tool_call_id'] -%}"
        "{%- set ids.at = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{%- set ids.waiting = ids.waiting | reject('equalto', ids.at) | list -%}"
        f"{{%- set ids.shown = ids.known[ids.at][1] if ids.at >= 0 else {shown} -%}}"
        "{%- set ids.name = ids.known[ids.at][2] if ids.at >= 0 else '' -%}"
    )


def _fitting(calls: CallsFormat, given: str) -> str:
    """`given` if it has the form of an id, otherwise a generated one."""
    made = f"'{GENERATED_ID}%0{max(calls.id_length, LEAST_ID) - len(GENERATED_ID)}d' | format(ids.known | length)"
    fits = f" and {given} | length == {calls.id_length} and {given}.isascii() and {given}.isalnum()"
    return f"({given} if {given}{fits if calls.id_length else ''} else {made})"


def _refusal(condition: str, what: str) -> str:
    return f"{{%- if {condition} -%}}{{{{- raise_exception('this template allows {what}') -}}}}{{%- endif -%}}"


def _tojson(indent: int | None) -> str:
    return "tojson" if indent is None else f"tojson(indent={indent})"
