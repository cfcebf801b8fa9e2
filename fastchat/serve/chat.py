"""Chat with a model, with the prompt format it was trained on.

The prompt's ids come from the encoder used in training, so user input can never become a control token.
Template, RoPE and nf4 come from the adapter's `training.json`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastchat.checkpoint.trained_model import TrainedModel, find_trained, load_trained_tokenizer
from fastchat.conversation import Dialogue, Template
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.columns import AS_THEY_ARE
from fastchat.data.rows.tool_calls import tools_of
from fastchat.data.rows.turns import Reading, read_turns
from fastchat.data.rows.unshown import refuse_unshown
from fastchat.errors import SettingsError
from fastchat.model.rope import context_length, rope_type
from fastchat.model.tokenizer import base_stop_ids
from fastchat.serve.placement import Placement, choose_placement

GREEDY_BELOW = 1e-5  # below this temperature, decoding is greedy
LEAD_TOKENS = 8  # decoded in front of an answer, so that its first token keeps its leading space
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
WINDOW = 64  # ids that are decoded again for each new one; the text before them is final


@dataclass
class Chat:
    """A loaded model with its template.

    Attributes:
        model: the causal LM, in evaluation mode.
        chat_encoder: tokenizer and template together.
        system: the system message; None for the template's own.
        temperature, max_new_tokens: defaults for `reply`.
        context: maximum number of tokens of prompt and answer together; None if the model has no limit.
        trained: where the model comes from, None if it was not loaded by `load_chat`.
        last: the newest answer, even if it is not complete.
    """

    model: Any
    chat_encoder: ChatEncoder
    pad_id: int
    system: str | None = None
    temperature: float = 0.7
    max_new_tokens: int = 512
    context: int | None = None
    trained: TrainedModel | None = None
    last: Answer | None = field(default=None, init=False, repr=False)

    def reply(
        self,
        messages: Sequence[dict[str, Any]] | Dialogue,
        *,
        tools: Sequence[dict[str, Any]] = (),
        greedy: bool = False,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The answer to a conversation that ends with a user's or a tool's turn.

        `messages`: as in a row of training data, dicts with "role" (system first, user, assistant, tool) and "content",
        "tool_calls" and so on; or a Dialogue. `tools`: schemas of tools that the model can call; a call is in the
        answer, in the model's own syntax. `on_text` is called with each new piece of the answer. Raises SettingsError
        if the template has no tools, or the conversation does not fit into the model's context.

        >>> chat.reply([{"role": "user", "content": "What is 2 plus 2?"}], greedy=True)        # doctest: +SKIP
        'The answer is 4.'
        """
        dialogue = messages if isinstance(messages, Dialogue) else to_dialogue(messages, self.system, tools)
        try:
            refuse_unshown(dialogue, reasoning=True, calls=self.chat_encoder.template.shows_calls)
        except BadRow as bad:
            raise SettingsError(f"the conversation: {bad}. {bad.way_out}") from None
        prompt = encode_prompt(dialogue, self.chat_encoder)
        room = self._room(len(prompt), max_new_tokens or self.max_new_tokens)
        answer = Answer(self.chat_encoder, prompt, on_text)
        self._generate(prompt, room, answer, greedy or self.temperature < GREEDY_BELOW)
        return answer.finish()

    def _room(self, num_prompt: int, wanted: int) -> int:
        if self.context is None:
            return wanted
        room = self.context - num_prompt
        if room < 1:
            raise SettingsError(
                f"The conversation has {num_prompt} tokens and the model's context is {self.context}: start a new one "
                "(/reset)."
            )
        return min(wanted, room)

    @torch.inference_mode()
    def _generate(self, prompt: list[int], room: int, answer: Answer, greedy: bool) -> None:
        from transformers import GenerationConfig

        self.last = answer
        ids = torch.tensor([prompt], device=self.model.device)
        sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": self.temperature, "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=room,
            eos_token_id=list(self.chat_encoder.stop_ids) or None,
            pad_token_id=self.pad_id,
            # Dynamic RoPE changes the angles of earlier keys as the text grows; cached keys would be stale.
            use_cache=rope_type(self.model.config) != "dynamic",
            **sampling,
        )
        # For every token the streamer is called first and collects it, then the stopping criterion checks it.
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=answer,
            stopping_criteria=[lambda input_ids, scores, **_: _verdict(input_ids, answer.ends)],
        )


class Answer:
    """Collects generated ids, turns them into text piece by piece, and notices the end of the turn.

    `stops` are further strings that end the answer. `plain`: the ids continue the prompt as a text, not as an answer in
    the template's form.

    Attributes:
        num_prompt: the number of tokens of the prompt.
        ids: the generated ids, without the stop.
        stopped: whether the model ended its turn.
        cancelled: set it to True to end the generation after the next token.
        began, first, newest: `time.perf_counter()` at the start, at the first and at the newest token.
    """

    def __init__(
        self,
        chat_encoder: ChatEncoder,
        prompt: Sequence[int],
        on_text: Callable[[str], None] | None = None,
        stops: Sequence[str] = (),
        plain: bool = False,
    ):
        self.chat_encoder = chat_encoder
        self.on_text = on_text
        self.stop_ids = chat_encoder.stop_ids
        self.stop_strings = (*stops,) if plain else (*chat_encoder.stop_strings, *stops)
        template = chat_encoder.template
        self.opening = ""
        if isinstance(template, Template) and not plain:  # vicuna's space after "ASSISTANT:" is generated, not shown
            self.opening = template.assistant.before[len(template.assistant.open) :]
        self.closing = "" if plain else self._before_stop()  # llama-2's space before </s>: the same
        self.lead = list(prompt[-LEAD_TOKENS:])
        self.lead_text = chat_encoder.encoder.decode(self.lead)
        self.ids: list[int] = []
        self.text = ""
        self._final, self._begin = "", 0  # the text of the ids before the window, and where that begins
        self.given = 0
        self.stopped = self.cancelled = False
        self.saw_prompt = False
        self.num_prompt = len(prompt)
        self.began = self.first = self.newest = time.perf_counter()

    @property
    def ends(self) -> bool:
        """Whether no further token is wanted."""
        return self.stopped or self.cancelled

    def put(self, value: torch.Tensor) -> None:
        """Take the next ids, as `generate` passes them to a streamer; its first call passes the prompt."""
        if not self.saw_prompt:
            self.saw_prompt = True
            return
        self.take(value.reshape(-1).tolist())

    def take(self, ids: Sequence[int]) -> None:
        """Take the next ids."""
        self.newest = time.perf_counter()
        self.first = self.first if self.ids else self.newest
        for token_id in ids:
            if token_id in self.stop_ids:
                self.stopped = True
            if not self.stopped:
                self.ids.append(token_id)
        self._read()
        self._give(self._safe_end())

    def end(self) -> None:
        """Called by `generate` after the last token."""

    def finish(self) -> str:
        """The whole answer; passes on text that was still held back."""
        self._give(len(self.text))
        return self.text

    def _read(self) -> None:
        text = self._whole(len(self.ids))
        self._move_window(text)
        cuts = [text.index(stop) for stop in self.stop_strings if stop in text]
        if cuts:
            self.stopped = True
            text = text[: min(cuts)]
        self.text = text.removesuffix(self.closing) if self.stopped else text

    def _whole(self, end: int) -> str:
        """The text of the first `end` ids, which may be before the window only if nothing is in it."""
        decoded = self.chat_encoder.encoder.decode([*self.lead, *self.ids[self._begin : end]])[len(self.lead_text) :]
        return self._final + (decoded if self._begin else decoded.removeprefix(self.opening))

    def _move_window(self, text: str) -> None:
        """Let the window begin later if that does not change the text: all ids would be decoded for each new one."""
        begin = len(self.ids) - LEAD_TOKENS
        if begin - self._begin < WINDOW:
            return
        before = self.lead, self.lead_text, self._final, self._begin
        self._final = self._whole(begin)
        self.lead, self._begin = self.ids[begin - LEAD_TOKENS : begin], begin
        self.lead_text = self.chat_encoder.encoder.decode(self.lead)
        if self._is_open(begin) or self._whole(len(self.ids)) != text:
            self.lead, self.lead_text, self._final, self._begin = before

    def _is_open(self, end: int) -> bool:
        """Whether the id at `end`, or the one before it, may be a part of a character."""
        near = self.ids[end - 1 : end + 1]
        return self._final.endswith(BROKEN) or any(self._is_byte(token_id) for token_id in near)

    def _is_byte(self, token_id: int) -> bool:
        return BYTE_TOKEN.fullmatch(self.chat_encoder.encoder.whole.id_to_token(token_id) or "") is not None

    def _safe_end(self) -> int:
        """Length of the text that is final: without an incomplete character or the beginning of a stop string."""
        if self.opening and self.opening.startswith(self.text):
            return 0
        end = len(self.text.rstrip(BROKEN))
        settled = len(self.ids)
        while settled > self._begin and self._is_byte(self.ids[settled - 1]):
            settled -= 1  # byte tokens in a row are decoded together, so the next byte may change all of them
        if settled < len(self.ids):
            end = min(end, len(self._whole(settled)))
        if self.stopped:
            return end
        for ending in (self.closing, *self.stop_strings):
            for size in range(min(len(ending), end), 0, -1):
                if self.text[:end].endswith(ending[:size]):
                    end -= size
                    break
        return end

    def _before_stop(self) -> str:
        """The plain text at the start of the template's stop, before the token or string that ends generation."""
        stop = self.chat_encoder.template.stop
        noticed = [
            *self.chat_encoder.stop_strings,
            *(content for content, control in self.chat_encoder.controls.items() if control),
        ]
        places = [stop.index(end) for end in noticed if end and end in stop]
        return stop[: min(places)] if places else ""

    def _give(self, end: int) -> None:
        if self.on_text and end > self.given:
            self.on_text(self.text[self.given : end])
            self.given = end


def load_chat(
    model_path: str,
    *,
    base_model_path: str | None = None,
    conv_template: str | None = None,
    system: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 512,
    placement: Placement | None = None,
    device: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Chat:
    """Load an adapter (with the base, RoPE, nf4 and template of its run) or a full model, ready to chat.

    `conv_template` is only needed if no template is recorded; it overrides a recorded one, with a warning.
    `device`: "cpu" or "cuda"; None uses the GPUs if there are any. `placement` replaces it: on which GPUs, and in how
    many bits. Raises SettingsError for a folder that cannot be used, or if no template is known; ResourceError if the
    model does not fit.
    """
    options: dict[str, Any] = {"cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    tuned, chat_encoder, pad_id = open_encoder(model_path, base_model_path, conv_template, **options)
    model = (placement or choose_placement(device)).load(tuned, **options)
    add_base_stops(chat_encoder, model)
    return Chat(model, chat_encoder, pad_id, system, temperature, max_new_tokens, context_length(model.config), tuned)


def add_base_stops(chat_encoder: ChatEncoder, model: Any) -> None:
    """Lets answers also end where those of the base do: it may have more stops than the template of the run."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    add_stops(chat_encoder, base_stop_ids(inner, added_ids(chat_encoder)))


def add_stops(chat_encoder: ChatEncoder, ids: Iterable[int]) -> None:
    """Lets answers also end at these ids."""
    chat_encoder.stop_ids = tuple(dict.fromkeys([*chat_encoder.stop_ids, *ids]))


def added_ids(chat_encoder: ChatEncoder) -> set[int]:
    """The ids of the tokenizer's added tokens."""
    return {token["id"] for token in chat_encoder.encoder.added.values()}


def open_encoder(
    model_path: str, base_model_path: str | None = None, conv_template: str | None = None, **options: Any
) -> tuple[TrainedModel, ChatEncoder, int]:
    """What a chat needs besides the weights: what is in the folder, its tokenizer with the template, and the pad id.

    Arguments and errors are those of `load_chat`.
    """
    tuned = find_trained(model_path, base_model_path)
    tokenizer = load_trained_tokenizer(tuned, **options)
    chat_encoder = bind_template(tuned, conv_template, TextEncoder.from_tokenizer(tokenizer))
    return tuned, chat_encoder, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def to_dialogue(
    messages: Sequence[dict[str, Any]], system: str | None = None, tools: Sequence[dict[str, Any]] = ()
) -> Dialogue:
    """Messages, read like those of training data, as a Dialogue whose next turn is the assistant's.

    Raises SettingsError if they are not. `system`: the system message if they have none.
    """
    try:
        return read_dialogue(messages, system, tools)
    except BadRow as bad:
        raise SettingsError(f"the conversation: {bad}. {bad.way_out}".rstrip(". ") + ".") from None


def read_dialogue(
    messages: Sequence[Any],
    system: str | None = None,
    tools: Sequence[Any] = (),
    reading: Reading | None = None,
) -> Dialogue:
    """The same, raising BadRow for messages that cannot be read; `reading` counts the keys that were not read."""
    reading = reading or Reading(AS_THEY_ARE, thinks=False)
    made = read_turns(messages, reading)
    schemas = tools_of({"tools": list(tools)}, reading.treatments)
    if not made.turns or made.turns[-1].role == "assistant":
        raise SettingsError("The conversation must end with a user's or a tool's turn to be answered.")
    said = system if made.system is None else made.system
    return Dialogue(tuple(made.turns), said, system_role=made.system_role, tools=schemas)


def bind_template(tuned: TrainedModel, name: str | None, encoder: TextEncoder) -> ChatEncoder:
    """The template to use: the given one, else the run's, else one that fits the tokenizer."""
    recorded = tuned.bind(encoder) if name is None else None
    if recorded:
        return recorded
    template = encoder.choose(name, tuned.base)
    tuned.say_other_template(template)
    return encoder.bind(template)


def _verdict(input_ids: torch.Tensor, stopped: bool) -> torch.Tensor:
    """The return value of a stopping criterion: [B] booleans."""
    return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)
