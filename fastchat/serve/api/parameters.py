"""The parameters of a request. A parameter that would change the answer is either honoured or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastchat.data.rows.keys import RESERVED_ARGUMENTS
from fastchat.errors import nearest
from fastchat.serve.api.errors import ApiError, wrong
from fastchat.serve.engines.base import Sampling

MOST_ANSWERS, MOST_TOP, MOST_STOPS, MOST_STOP_CHARACTERS = 32, 20, 16, 1000
_Read = Callable[[str, Any], Any]

# Parameters that do not change an answer.
WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
# Parameters that are not supported, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": (),
    "verbosity": ("medium",),
}


@dataclass(frozen=True)
class Common:
    """What chats and completions have in common. `max_tokens`: None for as many as there is room for."""

    model: str
    num_answers: int
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class ChatRequest:
    """A request of /v1/chat/completions."""

    common: Common
    messages: list[Any]
    tools: list[Any] = field(default_factory=list)
    template_arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompletionRequest:
    """A request of /v1/completions; each prompt is a text, or token ids."""

    common: Common
    prompts: list[str | list[int]]


def read_chat(body: Any) -> ChatRequest:
    """Read the JSON body of a chat request. Raises ApiError."""
    given = _given(body, _CHAT, ("model", "messages"))
    top = given.get("top_logprobs")
    if top is not None and not given.get("logprobs"):
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    limits = {given[key] for key in ("max_tokens", "max_completion_tokens") if key in given}
    if len(limits) > 1:
        raise ApiError(400, "'max_tokens' and 'max_completion_tokens' differ; give one of them.", "max_tokens")
    common = _common(given, (top or 0) if given.get("logprobs") else None, next(iter(limits), None))
    tools = given.get("tools") or []
    choice = given.get("tool_choice", "auto" if tools else "none")
    if choice == "auto" and not tools:
        raise ApiError(400, "'tool_choice' is 'auto', and there are no 'tools'.", "tool_choice")
    # With "none" the model is not told of the tools, so that it does not call them.
    return ChatRequest(common, given["messages"], tools if choice == "auto" else [], _arguments(given))


def read_completion(body: Any) -> CompletionRequest:
    """Read the JSON body of a completion request. Raises ApiError."""
    given = _given(body, _COMPLETION, ("model", "prompt"))
    prompt = given["prompt"]
    prompts = [prompt] if isinstance(prompt, str) or _are_ids(prompt) else prompt
    are_prompts = isinstance(prompts, list) and all(isinstance(one, str) or _are_ids(one) for one in prompts)
    if not are_prompts or not prompts:
        raise wrong("prompt", prompt, "a string, a list of token ids, or a list of these")
    common = _common(given, given.get("logprobs"), given.get("max_tokens", 16))
    if common.num_answers * len(prompts) > MOST_ANSWERS:
        raise ApiError(400, f"{common.num_answers} x {len(prompts)} answers; at most {MOST_ANSWERS} at once.", "prompt")
    return CompletionRequest(common, prompts)


def _given(body: Any, known: Mapping[str, _Read], needed: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that are given and not null, checked."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    made = {}
    for name, value in body.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in known:
            made[name] = known[name](name, value)
        elif name in NEUTRAL:
            if not any(
                value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[name]
            ):
                raise ApiError(400, f"{name!r} is not supported by this server; leave it out.", name, "unsupported")
        else:
            close = nearest(name, known, n=1, cutoff=0.7)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ApiError(400, f"unknown parameter {name!r}{hint}", name, "unknown_parameter")
    for name in needed:
        if name not in made:
            raise ApiError(400, f"{name!r} is missing.", name, "missing_parameter")
    return made


def _common(given: dict[str, Any], logprobs: int | None, max_tokens: int | None) -> Common:
    options = given.get("stream_options", {})
    if options and not given.get("stream"):
        raise ApiError(400, "'stream_options' needs 'stream': true.", "stream_options")
    return Common(
        model=given["model"],
        num_answers=given.get("n", 1),
        sampling=Sampling(given.get("temperature", 1.0), given.get("top_p", 1.0), given.get("seed"), logprobs),
        max_tokens=max_tokens,
        stops=given.get("stop", ()),
        stop_ids=given.get("stop_token_ids", ()),
        stream=given.get("stream", False),
        include_usage=options.get("include_usage") or False,
    )


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template; that it reads them is checked where the template is known."""
    arguments = given.get("chat_template_kwargs", {})
    if "reasoning_effort" in given:
        arguments = {"reasoning_effort": given["reasoning_effort"], **arguments}
    return arguments


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_whole(item) for item in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- kinds of values


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(name, value, "a string")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(name, value, "a list")
    return value


def _messages(name: str, value: Any) -> list[Any]:
    if not _list(name, value):
        raise wrong(name, value, "at least one message")
    return value


def _anything(name: str, value: Any) -> Any:
    return value


def _number(low: float, high: float, excluded: bool = False) -> _Read:
    def read(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (excluded and value == low):
            raise wrong(name, value, f"a number {'above' if excluded else 'from'} {low:g} to {high:g}")
        return float(value)

    return read


def _whole(low: int, high: int) -> _Read:
    def read(name: str, value: Any) -> int:
        if not _is_whole(value) or not low <= value <= high:
            raise wrong(name, value, f"a whole number from {low} to {high}")
        return value

    return read


def _stops(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    expected = f"a string or at most {MOST_STOPS}, not empty, of at most {MOST_STOP_CHARACTERS} characters"
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise wrong(name, value, expected)
    if not all(isinstance(stop, str) and 0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops):
        raise wrong(name, value, expected)
    return tuple(stops)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MOST_STOPS or not all(_is_whole(i) and i >= 0 for i in value):
        raise wrong(name, value, f"a list of at most {MOST_STOPS} token ids")
    return tuple(value)


def _choice(name: str, value: Any) -> str:
    if value not in ("auto", "none"):
        expected = "'auto' or 'none'; this server does not constrain what the model writes"
        raise wrong(name, value, expected)
    return value


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    options = _mapping(name, value)
    for key, item in options.items():
        if key == "include_usage":
            _flag(f"{name}.{key}", item)
        elif key != "include_obfuscation":
            raise ApiError(400, f"unknown parameter '{name}.{key}'.", name, "unknown_parameter")
    return options


def _template_arguments(name: str, value: Any) -> dict[str, Any]:
    arguments = _mapping(name, value)
    reserved = [key for key in arguments if key in RESERVED_ARGUMENTS]
    if reserved:
        raise ApiError(400, f"{name!r} cannot set {reserved[0]!r}.", name)
    return arguments


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value


_BOTH: dict[str, _Read] = {
    "model": _text,
    "n": _whole(1, MOST_ANSWERS),
    "temperature": _number(0, 100),
    "top_p": _number(0, 1, excluded=True),
    "seed": _whole(-(2**63), 2**63 - 1),
    "max_tokens": _whole(1, 2**31),
    "stop": _stops,
    "stop_token_ids": _ids,
    "stream": _flag,
    "stream_options": _stream_options,
}
_CHAT: dict[str, _Read] = {
    **_BOTH,
    "messages": _messages,
    "max_completion_tokens": _whole(1, 2**31),
    "logprobs": _flag,
    "top_logprobs": _whole(0, MOST_TOP),
    "tools": _list,
    "tool_choice": _choice,
    "chat_template_kwargs": _template_arguments,
    "reasoning_effort": _text,
}
_COMPLETION: dict[str, _Read] = {**_BOTH, "prompt": _anything, "logprobs": _whole(0, MOST_TOP)}
