"""Small chat templates, one for each kind of behaviour that published ones have, and tokenizers that carry them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.builders import make_tokenizer

_TOOLS = "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
_LAST = "{% set n = namespace(q=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set n.q = loop.index0 %}{% endif %}{% endfor %}"
_CALLS = (
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
_OTHERS = (
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n"

# No reasoning, calls as JSON, nothing changes in history (Qwen2.5).
APPENDING = (
    f"{_TOOLS}{{% for m in messages %}}{{% if m.role == 'assistant' %}}<|im_start|>assistant\n{{{{ m.content or '' }}}}"
    f"{_CALLS}<|im_end|>\n{_OTHERS}{_PROMPT}{{% endif %}}"
)
# Reasoning is dropped from history, and the last answer always has a place for it (Qwen3).
DROPPING = (
    f"{_TOOLS}{_LAST}{{% for m in messages %}}{{% if m.role == 'assistant' %}}<|im_start|>assistant\n"
    "{% set r = m.reasoning_content or '' %}{% if loop.index0 > n.q and (loop.last or r) %}<think>\n{{ r.strip('\\n') }}\n"
    f"</think>\n\n{{% endif %}}{{{{ m.content or '' }}}}{_CALLS}<|im_end|>\n{_OTHERS}"
    f"{_PROMPT}{{% if enable_thinking is false %}}<think>\n\n</think>\n\n{{% endif %}}{{% endif %}}"
)
# The prompt opens the reasoning (Qwen3.5).
OPENING = DROPPING.replace("(loop.last or r)", "true").replace(
    "enable_thinking is false %}<think>\n\n</think>\n\n", "enable_thinking is not false %}<think>\n"
)
# The prompt opens the reasoning, which is cut even from the last answer; the arguments of calls are text (DeepSeek-R1).
CUTTING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% elif m.role == 'tool' %}"
    "<|out|>{{ m.content }}<|/out|>{% elif m.role == 'assistant' %}{% if loop.previtem.role != 'tool' %}<|assistant|>"
    "{% endif %}{% if m.tool_calls %}{{ m.content }}<|calls|>{% for c in m.tool_calls %}<|call|>"
    "{{ c.function.name + '\n' + c.function.arguments }}<|/call|>{% endfor %}<|/calls|><|eos|>{% else %}"
    "{{ m.content.split('</think>')[-1] }}<|eos|>{% endif %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|assistant|><think>\n{% endif %}"
)
# Only an argument makes the prompt open the reasoning (DeepSeek-V3.1).
SWITCHED = CUTTING.replace(
    "%}<|assistant|>{% endif %}{% if m.tool", "%}<|assistant|></think>{% endif %}{% if m.tool"
).replace("<think>\n{% endif %}", "{{ '<think>' if thinking else '</think>' }}{% endif %}")
# Reasoning in a channel, another end in history than in generation, one call at a time (gpt-oss).
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if 'tool_calls' in m %}{% set f = namespace(x=false) %}"
    "{% for l in messages[loop.index:] %}{% if l.role == 'assistant' and 'tool_calls' not in l %}{% set f.x = true %}"
    "{% endif %}{% endfor %}{% if (m.thinking or m.content) and not f.x %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking or m.content }}<|end|>{% endif %}<|start|>assistant to={{ m.tool_calls[0].function.name }}<|channel|>"
    "commentary<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% elif loop.last and not "
    "add_generation_prompt %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}<|start|>assistant"
    "<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% elif m.role == 'tool' %}<|start|>tool<|message|>"
    "{{ m.content | tojson }}<|end|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% if loop.first and tools %}{% for t in tools %}<|start|>developer<|message|>{{ t.function.description }}<|end|>"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Nothing ends an answer but the token that opens the next turn (GLM-4.5).
ENDLESS = (
    f"[gMASK]<sop>{{% if tools %}}<|system|>\n{{{{ tools | tojson }}}}{{% endif %}}{_LAST}{{% for m in messages %}}"
    "{% if m.role == 'assistant' %}<|assistant|>{% if loop.index0 > n.q and m.reasoning_content %}\n<think>"
    "{{ m.reasoning_content.strip() }}</think>{% else %}\n<think></think>{% endif %}{% if m.content %}\n"
    "{{ m.content.strip() }}{% endif %}{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}\n"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>"
    "{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}{% elif m.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}<|observation|>{% endif %}\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# A call ends with the token that opens its result, results are in the assistant's own turn, texts in quote tokens (Gemma 4).
RESPONDING = (
    "{% macro show(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}{% for k, w in v | dictsort %}"
    "{{ k }}:{{ show(w) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}{% elif v is sequence %}[{% for w in v %}"
    "{{ show(w) }}{% if not loop.last %},{% endif %}{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}"
    "{% if enable_thinking or tools or messages[0].role == 'system' %}<|turn>system\n{% if enable_thinking %}<|think|>{% endif %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}{% for t in tools or [] %}<|tool>"
    "{{ show(t.function) }}<tool|>{% endfor %}<turn|>\n{% endif %}{% set p = namespace(calls=false, open=false) %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'tool' %}{% if not p.calls %}<|tool_response>{% endif %}"
    "{{ show(m.content) }}<tool_response|>{% set p.calls = false %}{% set p.open = true %}{% else %}{% if not p.open %}<|turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{% endif %}{% set p.open = false %}{% if m.role == 'assistant' %}"
    "{% if m.reasoning and loop.last %}<|channel>thought\n{{ m.reasoning }}\n<channel|>{% endif %}{{ (m.content or '') | trim }}"
    "{% for c in m.tool_calls or [] %}<|tool_call>call:{{ c.function.name }}{{ show(c.function.arguments) }}<tool_call|>"
    "{% endfor %}{% if m.tool_calls %}<|tool_response>{% set p.calls = true %}{% set p.open = true %}{% else %}<turn|>\n"
    "{% endif %}{% else %}{{ m.content | trim }}<turn|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and not p.open %}<|turn>model\n{% endif %}"
)
# Ids of nine characters; the system message and the tools are in the last user turn, wherever that is (Mistral).
MOVING = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    f"{_LAST}<|bos|>{{% for m in messages %}}{{% if m.role == 'user' %}}{{% if loop.index0 == n.q and tools %}}[TOOLS]"
    "{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ system + '\n\n' if loop.index0 == n.q and system else '' }}{{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    "[RESULTS]{{ m.content }} {{ m.tool_call_id }}[/RESULTS]{% elif m.tool_calls %}[CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ (c.function | tojson)[:-1] }}"
    ', "id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]<|eos|>{% elif m.role == \'assistant\' %}'
    "{{ m.content }}<|eos|>{% endif %}{% endfor %}"
)
# Content is a list of parts, and strict alternation (vision models' templates).
PARTS = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}"
    f"<|im_end|>\n{{% endfor %}}{_PROMPT}{{% endif %}}"
)
# The answer is in a box of its own within the turn, and the next one is opened in any case (Command R7B).
BOXED = (
    "<|bos|>{% for m in messages %}{% if m.role == 'assistant' %}<|turn_start|><|bot|>{% if m.tool_calls %}<|plan_start|>"
    '{{ m.tool_plan }}<|plan_end|><|action_start|>[{% for c in m.tool_calls %}{"tool": "{{ c.function.name }}", "with": '
    "{{ c.function.arguments | tojson }}}{% if not loop.last %},\n{% endif %}{% endfor %}]<|action_end|>{% else %}<|box_start|>"
    "{{ m.content }}<|box_end|>{% endif %}<|turn_end|>{% elif m.role == 'tool' %}<|turn_start|><|sys|>{{ m.content | tojson }}"
    "<|turn_end|>{% else %}<|turn_start|><|{{ 'sys' if m.role == 'system' else 'usr' }}|>{{ m.content }}<|turn_end|>{% endif %}"
    "{% endfor %}{% for t in tools or [] %}{% endfor %}<|turn_start|><|bot|>"
)
# Reasoning is shown before calls, in their chain, but never before an answer (Kimi-K2-Thinking).
CHAINED = (
    f"{_TOOLS}{{% set h = namespace(a=-1) %}}{{% for m in messages %}}{{% if m.role == 'assistant' and not m.tool_calls %}}"
    "{% set h.a = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|im_start|>assistant\n<think>{{ (m.reasoning_content or '') if loop.index0 > h.a else '' }}</think>{{ m.content or '' }}"
    f"{_CALLS}<|im_end|>\n{_OTHERS}{_PROMPT}{{% endif %}}"
)
# A second end after the last answer (Phi).
TWICE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|eos|>{% endif %}"
)
KINDS: dict[str, str] = {
    name: value
    for name, value in globals().items()
    if name.isupper() and not name.startswith("_") and type(value) is str
}
_CONTROL = re.compile(
    r"<\|[^<>\s{}]+\|?>|<[^<>\s|{}%]+\|>|\[/?[A-Z]+\]|\[gMASK\]|<sop>|</?(?:think|tool_call|tool_response|arg_key|arg_value)>"
)
_NOT_SPECIAL = re.compile("</?(think|tool_call|tool_response|arg_key|arg_value)>")


@cache
def with_tokens(source: str, directory: Path) -> Path:
    """A tokenizer with a template, and with its control strings as tokens; those of <think> and so on are not special."""
    path = make_tokenizer("byte_nobos", directory, chat_template=source)
    made: dict[str, Any] = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in made["added_tokens"]}
    written = dict.fromkeys(
        [*_CONTROL.findall(source), *re.findall(r"<\|(?:user|assistant|system|sys|usr)\|>", _roles(source))]
    )
    first = max([token["id"] for token in made["added_tokens"]] + list(made["model"]["vocab"].values())) + 1
    for number, content in enumerate(c for c in written if c not in known):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        special = not _NOT_SPECIAL.fullmatch(content)
        made["added_tokens"].append({"id": first + number, "content": content, "special": special, **flags})
    (path / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return path


def _roles(source: str) -> str:
    """Control strings that a template writes with the role in them."""
    names = (
        ("user", "assistant", "system") if "|{{ m.role }}|" in source else ("sys", "usr") if "'usr'" in source else ()
    )
    return "".join(f"<|{name}|>" for name in names)
