"""OpenAI's objects: completions, chunks of a stream, log-probabilities, usage."""

from __future__ import annotations

import json
import re
import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastchat.conversation import ToolCall
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.serve.api.answering import CONTENT, REASONING, Piece
from fastchat.serve.chat import BROKEN, BYTE_TOKEN
from fastchat.serve.engines.base import Token

IMPOSSIBLE = -9999.0
_ID_LETTERS = string.ascii_letters + string.digits


@dataclass
class Reply:
    """What all objects of one response have in common.

    Attributes:
        chat: of /v1/chat/completions, not of /v1/completions.
        logprobs: whether to report log-probabilities.
        usage: whether a stream ends with the usage.
    """

    model: str
    encoder: TextEncoder
    chat: bool
    logprobs: bool = False
    usage: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=dict)
    _num_calls: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def whole(self, answers: Sequence[Sequence[Piece]], num_prompt: int, num_generated: int) -> dict[str, Any]:
        """The response to a request that is not streamed: all pieces of each answer."""
        choices = [self._choice(index, _joined(pieces)) for index, pieces in enumerate(answers)]
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": choices,
            "usage": usage(num_prompt, num_generated),
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer in a chat."""
        return self._chunk([self._delta(index, {"role": "assistant", "content": ""})])

    def chunk(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """The chunks for a piece of an answer."""
        if not self.chat:
            text = "".join(text for _, text in piece.texts)
            choice = {"index": index, "text": text, "logprobs": self._old_logprobs(index, piece.tokens)}
            return [self._chunk([{**choice, "finish_reason": piece.finish}])]
        deltas: list[dict[str, Any]] = [{kind: text} for kind, text in piece.texts]
        if piece.calls:
            calls = [{"index": k, **call} for k, call in enumerate(map(_call, piece.calls))]
            deltas.append({"tool_calls": calls})
        if piece.finish or (piece.tokens and self.logprobs and not deltas):
            deltas.append({})
        chunks = [self._chunk([self._delta(index, delta)]) for delta in deltas]
        if chunks:
            chunks[0]["choices"][0]["logprobs"] = self._logprobs(piece.tokens)
            chunks[-1]["choices"][0]["finish_reason"] = piece.finish
        return chunks

    def closing(self, num_prompt: int, num_generated: int) -> dict[str, Any]:
        """The chunk with the usage."""
        return {**self._chunk([]), "usage": usage(num_prompt, num_generated)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, **({"usage": None} if self.usage else {})}

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        texts = dict(piece.texts)
        content = texts.get(CONTENT, "")
        if not self.chat:
            logprobs = self._old_logprobs(index, piece.tokens)
            return {"index": index, "text": content, "logprobs": logprobs, "finish_reason": piece.finish}
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if piece.calls else "")}
        message["refusal"] = None
        if REASONING in texts:
            message[REASONING] = texts[REASONING]
        if piece.calls:
            message["tool_calls"] = list(map(_call, piece.calls))
        logprobs = self._logprobs(piece.tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": piece.finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        rows = []
        for token in tokens:
            top = [self._logprob(token_id, value) for token_id, value in token.top]
            rows.append({**self._logprob(token.id, token.logprob), "top_logprobs": top})
        return {"content": rows, "refusal": None}

    def _logprob(self, token_id: int, value: float | None) -> dict[str, Any]:
        text, raw = token_text(self.encoder, token_id)
        return {"token": text, "logprob": _finite(value), "bytes": None if raw is None else list(raw)}

    def _old_logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """In the form of /v1/completions. `text_offset` counts the characters of the tokens before."""
        if not self.logprobs:
            return None
        texts = [token_text(self.encoder, token.id)[0] for token in tokens]
        offsets, at = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        tops = [{token_text(self.encoder, i)[0]: _finite(value) for i, value in token.top} for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _finite(logprob: float | None) -> float:
    """A log-probability as JSON has it; that of an impossible token is OpenAI's value for a very unlikely one."""
    assert logprob is not None
    return max(logprob, IMPOSSIBLE)


def usage(num_prompt: int, num_generated: int) -> dict[str, int]:
    """Tokens of the prompts, and of the answers with their stops."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def token_text(encoder: TextEncoder, token_id: int) -> tuple[str, bytes | None]:
    """The text of one token within a text, and its bytes: a token may be only a part of a character."""
    lead = [encoder.plain(["a"], "inside")[0][-1][0]]
    text = encoder.decode([*lead, token_id])[len(encoder.decode(lead)) :]
    if BROKEN not in text:
        return text, text.encode("utf-8")
    name = encoder.whole.id_to_token(token_id) or ""
    if BYTE_TOKEN.fullmatch(name):
        return text, bytes([int(name[3:5], 16)])
    table = _byte_letters()
    return text, bytes(table[c] for c in name) if all(c in table for c in name) else None


def _byte_letters() -> dict[str, int]:
    """The letters with which byte-level tokenizers write bytes: printable ones as they are, others from U+0100 on."""
    printable = [b for b in range(256) if re.match(r"[!-~¡-¬®-ÿ]", chr(b))]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


def _joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of an answer as one."""
    texts: dict[str, str] = {}
    for piece in pieces:
        for kind, text in piece.texts:
            texts[kind] = texts.get(kind, "") + text
    tokens = [token for piece in pieces for token in piece.tokens]
    return Piece(list(texts.items()), tokens, pieces[-1].calls, pieces[-1].finish)


def _call(call: ToolCall) -> dict[str, Any]:
    """A call; its id is the model's own or a new one, of a form that every template accepts."""
    made = call.id or "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": made, "type": "function", "function": function}
