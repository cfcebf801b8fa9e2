"""Upstream's interface to generation: `generate_stream`, `chat_loop` and the `ChatIO` that a chat talks through.

The tokens come from transformers' `generate`; prompts and stops are upstream's strings. `fastchat.serve.chat` is this
project's own chat, which also uses the training record.
"""

from __future__ import annotations

import abc
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from fastchat.conversation import Conversation, SeparatorStyle, get_conv_template
from fastchat.model.model_adapter import get_conversation_template, get_generate_stream_function, load_model
from fastchat.serve.loop_commands import run_command
from fastchat.utils import get_context_length, is_partial_stop, is_sentence_complete

if TYPE_CHECKING:
    from fastchat.modules.awq import AWQConfig
    from fastchat.modules.exllama import ExllamaConfig
    from fastchat.modules.gptq import GptqConfig
    from fastchat.modules.xfastertransformer import XftConfig

__all__ = [
    "ChatIO",
    "SeparatorStyle",
    "chat_loop",
    "generate_stream",
    "get_context_length",
    "get_conv_template",
    "get_conversation_template",
    "get_generate_stream_function",
    "is_partial_stop",
    "is_sentence_complete",
    "load_model",
    "prepare_logits_processor",
]
_GREEDY_TEMPERATURE, _GREEDY_TOP_P = 1e-5, 1e-8  # below these upstream decodes greedily


def prepare_logits_processor(temperature: float, repetition_penalty: float, top_p: float, top_k: int) -> Any:
    """transformers' processors for these settings; those without effect are left out."""
    from transformers.generation import logits_process as library

    processors = library.LogitsProcessorList()
    if temperature >= _GREEDY_TEMPERATURE and temperature != 1.0:
        processors.append(library.TemperatureLogitsWarper(temperature))
    if repetition_penalty > 1.0:
        processors.append(library.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if _GREEDY_TOP_P <= top_p < 1.0:
        processors.append(library.TopPLogitsWarper(top_p))
    if top_k > 0:
        processors.append(library.TopKLogitsWarper(top_k))
    return processors


def generate_stream(
    model: Any,
    tokenizer: Any,
    params: dict,
    device: str,
    context_len: int,
    stream_interval: int = 2,
    judge_sent_end: bool = False,
) -> Iterator[dict[str, Any]]:
    """The answer as it grows: {"text", "logprobs" (None), "usage", "finish_reason"}, the last with its finish reason.

    `params`: "prompt", and temperature, repetition_penalty, top_p, top_k, max_new_tokens, echo, stop (one or several
    strings), stop_token_ids, with upstream's defaults. A prompt that is too long loses its beginning. `judge_sent_end`
    has no effect: an answer ends where the model ends it. Raises NotImplementedError for "logprobs".
    """
    if params.get("logprobs") is not None:
        raise NotImplementedError("logprobs are not available here: call the model and take log_softmax of its logits")
    if model.config.is_encoder_decoder:
        raise NotImplementedError("only causal language models are supported; generate with transformers instead")
    max_new_tokens = int(params.get("max_new_tokens", 256))
    ids = tokenizer(params["prompt"]).input_ids
    if ids[:2] == [tokenizer.bos_token_id] * 2:  # the prompt contains it, and the tokenizer adds it too
        ids = ids[1:]
    prompt = ids[-max(context_len - max_new_tokens - 1, 1) :]
    stops = {*(params.get("stop_token_ids") or ()), tokenizer.eos_token_id} - {None}
    wanted = params.get("stop") or []
    texts = [wanted] if isinstance(wanted, str) else [text for text in wanted if text]
    answer: list[int] = []
    finish_reason, text = "length", ""
    for token in _tokens(model, tokenizer, prompt, params, max_new_tokens, stops):
        if token in stops:
            finish_reason = "stop"
            break
        answer.append(token)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        cuts = [text.index(stop) for stop in texts if stop in text]
        if cuts:
            text, finish_reason = text[: min(cuts)], "stop"
            break
        due = len(answer) % stream_interval == 0
        if due and not text.endswith("\ufffd") and not any(is_partial_stop(text, stop) for stop in texts):
            yield _piece(text, params, len(prompt), len(answer), None)
    yield _piece(text, params, len(prompt), len(answer), finish_reason)


def _piece(text: str, params: dict, num_prompt: int, num_answer: int, finish_reason: str | None) -> dict[str, Any]:
    whole = params["prompt"] + text if params.get("echo", True) else text
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_answer, "total_tokens": num_prompt + num_answer}
    return {"text": whole, "logprobs": None, "usage": usage, "finish_reason": finish_reason}


def _tokens(
    model: Any, tokenizer: Any, prompt: list[int], params: dict, max_new_tokens: int, stops: set[int]
) -> Iterator[int]:
    """The generated ids, one by one, from a thread that runs `generate`; it ends when the iterator is closed."""
    from transformers import GenerationConfig

    settings = [float(params.get(name, 1.0)) for name in ("temperature", "repetition_penalty", "top_p")]
    greedy = settings[0] < _GREEDY_TEMPERATURE or settings[2] < _GREEDY_TOP_P
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        **({"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}),
        eos_token_id=sorted(stops) or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )
    streamer, input_ids = _Queue(), torch.tensor([prompt], device=model.device)

    def work() -> None:
        """Generates in a thread of its own; an error reaches the reader through the queue."""
        try:
            model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=config,
                logits_processor=prepare_logits_processor(
                    settings[0], settings[1], settings[2], int(params.get("top_k", -1))
                ),
                stopping_criteria=[
                    lambda ids, scores, **_: torch.full_like(ids[:, 0], streamer.closed, dtype=torch.bool)
                ],
                streamer=streamer,
            )
        except BaseException as error:  # raised again in the consumer's thread
            streamer.found.put(error)
        streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := streamer.found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        streamer.closed = True
        thread.join()


class _Queue:
    """The streamer for `generate`; its first call passes the prompt."""

    def __init__(self) -> None:
        self.found: queue.Queue[int | BaseException | None] = queue.Queue()
        self.closed = False
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._saw_prompt:
            for token in value.reshape(-1).tolist():
                self.found.put(token)
        self._saw_prompt = True

    def end(self) -> None:
        self.found.put(None)


class ChatIO(abc.ABC):
    """How `chat_loop` reads and writes."""

    @abc.abstractmethod
    def prompt_for_input(self, role: str) -> str:
        """The next message of `role`; EOFError at the end of input."""

    @abc.abstractmethod
    def prompt_for_output(self, role: str) -> None:
        """Show that `role` is next."""

    @abc.abstractmethod
    def stream_output(self, output_stream: Iterable[dict[str, Any]]) -> str:
        """Show an answer as it comes from `generate_stream`, and return it."""

    @abc.abstractmethod
    def print_output(self, text: str) -> None:
        """Show a text."""


def chat_loop(
    model_path: str,
    device: str,
    num_gpus: int,
    max_gpu_memory: str,
    dtype: torch.dtype | None,
    load_8bit: bool,
    cpu_offloading: bool,
    conv_template: str | None,
    conv_system_msg: str | None,
    temperature: float,
    repetition_penalty: float,
    max_new_tokens: int,
    chatio: ChatIO,
    gptq_config: GptqConfig | None = None,
    awq_config: AWQConfig | None = None,
    exllama_config: ExllamaConfig | None = None,
    xft_config: XftConfig | None = None,
    revision: str = "main",
    judge_sent_end: bool = True,
    debug: bool = True,
    history: bool = True,
) -> None:
    """Chat through `chatio` until `!!exit`, an empty message or the end of input.

    `!!reset` starts over, `!!remove` takes back the last message with its answer, `!!regen` answers it again, `!!save
    FILE` and `!!load FILE` write and read the conversation. Model settings as in `load_model`.
    """
    model, tokenizer = load_model(
        model_path, device, num_gpus, max_gpu_memory, dtype, load_8bit, cpu_offloading,
        gptq_config, awq_config, exllama_config, xft_config, revision, debug,
    )  # fmt: skip
    params = {"temperature": temperature, "repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
    length = get_context_length(model.config)
    conv: Conversation | None = None
    while True:
        if conv is None or not history:
            conv = _new_conversation(model_path, conv_template, conv_system_msg)
        message = _message(chatio, conv.roles[0])
        if message in ("", "!!exit"):
            return
        if message == "!!reset":
            conv = None
            continue
        conv, message = run_command(conv, message, chatio)
        if message:
            _answer(conv, message, chatio, (model, tokenizer, params, device, length))


def _new_conversation(model_path: str, template: str | None, system_message: str | None) -> Conversation:
    conv = get_conv_template(template) if template else get_conversation_template(model_path)
    if system_message is not None:
        conv.set_system_message(system_message)
    return conv


def _message(chatio: ChatIO, role: str) -> str:
    try:
        return chatio.prompt_for_input(role)
    except EOFError:
        return ""


def _answer(conv: Conversation, message: str, chatio: ChatIO, with_model: tuple[Any, ...]) -> None:
    """Ask, show the answer, and keep both; Ctrl-C takes both back."""
    model, tokenizer, params, device, length = with_model
    conv.append_message(conv.roles[0], message)
    conv.append_message(conv.roles[1], None)
    asked = {**params, "prompt": conv.get_prompt(), "stop": conv.stop_str, "stop_token_ids": conv.stop_token_ids}
    try:
        chatio.prompt_for_output(conv.roles[1])
        answer = chatio.stream_output(generate_stream(model, tokenizer, {**asked, "echo": False}, device, length))
        conv.update_last_message(answer.strip())
    except KeyboardInterrupt:
        del conv.messages[-2:]
        chatio.print_output("(stopped)")
