"""The one table of what a row may contain: forms, keys, role names. Everything that reads rows reads it here.

Keys with the same meaning are in one tuple; the first is the name in messages and in files that we write.
"""

from __future__ import annotations

import re

USER, ASSISTANT, TOOL, SYSTEM = "user", "assistant", "tool", "system"
DEVELOPER = "developer"  # a system message that the template receives under this role
CALL = "function_call"  # an assistant turn whose text is the JSON of its calls

# Role names, in lower case (case is ignored), and what they stand for. Many dumps name the assistant after the product
# that answered.
ROLE_NAMES = {
    SYSTEM: (SYSTEM,),
    DEVELOPER: (DEVELOPER,),
    USER: (USER, "human", "prompter"),
    ASSISTANT: (ASSISTANT, "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard"),
    CALL: (CALL, "tool_call"),
    TOOL: (TOOL, "observation", "function", "tool_response", "ipython"),
}
ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}

# --- forms of a row

TURN_LISTS = ("messages", "conversations", "conversation", "chat", "items")
# The column that identifies a form without a list of turns, and the one with the answer.
INSTRUCTION, PROMPT, TEXT = "instruction", "prompt", "text"
PAIRS = {INSTRUCTION: "output", PROMPT: "completion"}
# The columns of each form.
FORM_KEYS = {
    **{key: (key,) for key in TURN_LISTS},
    INSTRUCTION: (INSTRUCTION, "input", "output", "history"),
    PROMPT: (PROMPT, "completion"),
    TEXT: (TEXT,),
}

# Names of two columns that look like a pair; they are only suggested, because either may mean something else.
QUESTIONS = ("question", "query", "problem", "prompt", "instruction", "input", "source", "user", "q", "x")
ANSWERS = (
    "answer",
    "answers",
    "response",
    "solution",
    "completion",
    "output",
    "chosen",
    "target",
    "assistant",
    "reply",
    "a",
    "y",
)

# --- keys of a turn

TURN_ROLE = ("role", "from")
TURN_TEXT = ("content", "value")
CALLS = ("tool_calls", "function_call")
CALL_ID = "tool_call_id"  # of a result
TOOL_NAME = "name"  # of a result
TEXT_PARTS = ("text", "input_text", "output_text")  # the types of a message's parts that are text
THOUGHT_PARTS = ("thinking", "reasoning")  # and those that are reasoning, with their text under this key or "text"

# --- keys of rows and turns

SYSTEM_KEY = "system"
IDS = ("id", "idx")
ORIGIN = "source"  # where a row comes from, which an evaluation reports on separately
TOOLS = ("tools", "functions")
ARGUMENTS, THINKING_SWITCH = "chat_template_kwargs", "enable_thinking"
# The model's reasoning before an answer.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Keys that say whether a turn, or every answer of a row, is trained on; and the value that means yes.
TRAIN_KEYS = {
    "train": True, "training": True, "trainable": True, "weight": True, "loss": True, "loss_mask": True,
    "masked": False,
}  # fmt: skip
# Also about training, but not for a whole turn, or with two meanings.
UNCLEAR_KEYS = {
    "mask": "some tools mark with it what is trained on, others what is not",
    "train_detail": "a turn is trained on as a whole",
    "training_detail": "a turn is trained on as a whole",
}
# Arguments of a chat template that are not the row's to set.
RESERVED_ARGUMENTS = frozenset(
    (
        "messages",
        "conversation",
        "conversations",
        "tools",
        "functions",
        "add_generation_prompt",
        "continue_final_message",
    )
    + ("chat_template", "tokenize", "tokenizer_kwargs", "return_tensors", "return_dict", "return_assistant_tokens_mask")
    + ("padding", "truncation", "max_length", "bos_token", "eos_token", "pad_token", "unk_token", "raise_exception")
    + ("strftime_now",)
)

# What `--data_columns` can name. A turn's keys are separate, because a turn and a row may use one name for two things.
ROW_KEYS = frozenset((SYSTEM_KEY, ARGUMENTS, THINKING_SWITCH, ORIGIN, *IDS, *TOOLS, *TRAIN_KEYS, *UNCLEAR_KEYS))
ROW_COLUMNS = frozenset((*ROW_KEYS, *REASONING_KEYS, *(key for keys in FORM_KEYS.values() for key in keys)))
TURN_KEYS = frozenset((*TURN_ROLE, *TURN_TEXT, *CALLS, *REASONING_KEYS, *TRAIN_KEYS, *UNCLEAR_KEYS))

# Media, which a text model does not see.
_MEDIA = re.compile(r"(image|img|picture|photo|video|audio)s?(_?(url|uri|path|file|base64|bytes|data)s?)?", re.I)
# Words in a key that, with true, false or a number as its value, seems to say what is trained on, and is not supported.
_LEARNING = frozenset(
    ("train", "training", "trained", "trainable", "loss", "mask", "masks", "masked", "weight", "weights")
    + ("supervise", "supervised", "learn", "learned", "ignore", "ignored", "exclude", "excluded", "skip")
)
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")

# Names of keys that are not read and seem to mean one of ours: they are only suggested.
_SEEMS = {
    SYSTEM_KEY: re.compile(r"sys(tem)?_?(prompt|message|text|content|instructions?)|sys", re.I),
    TOOLS[0]: re.compile(r"(available|tool|function)_?(tools|functions|schemas?|definitions|list)", re.I),
    REASONING_KEYS[0]: re.compile(
        r"(thoughts?|cot|chain_of_thought|rationale)|(reasoning|thinking|thought)_?(text|process|traces?)", re.I
    ),
}
# What is done with unusual but valid rows; each is counted.
TREATMENTS = {
    "leading_assistant_turns": "assistant turns before the first user turn, removed",
    "leading_tool_turns": "tool turns before the first user turn, removed",
    "trailing_user_turns": "user or tool turns after the last answer, removed",
    "empty_assistant_turns": "assistant turns without text, kept but not learned",
    "empty_user_turns": "user turns without text, kept",
    "asked_prompts": "user, tool or system turns marked for training; only --train_on all trains on them",
    "turn_list_used": "rows with a list of turns and other columns with a dialogue; the list is used",
    "calls_as_text": "function_call turns whose text is not the JSON of calls, learned as text",
    "tags_as_text": "answers and results with <tool_call> or <tool_response> in their text, which stays text",
    "json_as_text": "answers whose text is the JSON of calls of the row's tools, which stays text",
    "calls_in_output": "answers next to a prompt that are the JSON of calls of the row's tools, read as calls",
    "merged_calls": "function_call turns merged into the assistant turn before them",
    "duplicate_call_ids": "tool calls with the id of an earlier call in the dialogue",
    "unknown_call_ids": "tool results whose id is not that of an earlier call in the dialogue",
    "results_without_call": "tool results that do not follow a call",
    "null_arguments": "null values in tools and calls, treated as absent",
    "empty_reasoning": "answers with an empty <think></think>, which is left to the template",
    "ignored_arguments": "dialogues with template arguments that the template does not read",
}


def is_media(key: str) -> bool:
    """Whether a key holds or refers to media, which a text model does not see: "images", "video_path"."""
    return _MEDIA.fullmatch(key) is not None


def seems_to_be(key: str) -> str | None:
    """The key of ours that an unknown key seems to mean.

    >>> seems_to_be("system_prompt"), seems_to_be("parallel_tool_calls")
    ('system', None)
    """
    return next((ours for ours, names in _SEEMS.items() if names.fullmatch(key)), None)


def is_about_learning(key: str) -> bool:
    """Whether a word of a key is about training.

    >>> is_about_learning("lossWeight"), is_about_learning("is_masked"), is_about_learning("restrained")
    (True, True, False)
    """
    return any(word.lower() in _LEARNING for word in _WORD.findall(key))


def is_read(column: str) -> bool:
    """Whether a column of a table is relevant to its rows as conversations."""
    return column in ROW_COLUMNS or is_media(column) or is_about_learning(column)
