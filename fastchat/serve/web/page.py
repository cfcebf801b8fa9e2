"""The page: what is on it, and what its buttons do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastchat.errors import counted
from fastchat.pages import asset, escaped
from fastchat.serve.web.conversation import Round, from_json, messages, round_at, shown, to_json, without_literal
from fastchat.serve.web.requests import Api, Reply, curl

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr  # noqa: E402
from gradio.blocks import Block  # noqa: E402
from gradio.themes import Default  # noqa: E402

FORMULAS = [("$$", "$$", True), (r"\(", r"\)", False), (r"\[", r"\]", True)]
Updates = dict[Any, Any]


class Page:
    """The chat with the models of an API.

    Args:
        about: lines that say what is served, (what, value).
        key_variable: the variable that has the key in the commands that the page shows; None if none is needed.
    """

    def __init__(self, models: Sequence[str], about: Sequence[tuple[str, str]], api: Api, key_variable: str | None):
        self.models, self._api, self._key_variable = list(models), api, key_variable
        title = f"{self.models[0]} · fastchat"
        with gr.Blocks(title=title, analytics_enabled=False, fill_height=True) as self.blocks:
            gr.Markdown(_heading(self.models, about), elem_id="about")
            self._kept = gr.JSON([], visible=False)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    self._add_chats()
                    self._add_input()
                with gr.Column(scale=1, min_width=260):
                    self._add_settings()
            with gr.Accordion("The last request as a curl command", open=False, elem_id="request"):
                self._curl = gr.Code(
                    "",
                    language="shell",
                    show_label=False,
                    interactive=False,
                    wrap_lines=True,
                    show_line_numbers=False,
                    buttons=["copy"],
                    elem_id="curl",
                )
            self._connect()
        self.blocks.queue(default_concurrency_limit=None)  # the API limits how many answers there are at once

    def _add_chats(self) -> None:
        self._chats, self._status = {}, {}
        with gr.Row(equal_height=False):
            for number, name in enumerate(self.models):
                with gr.Column(min_width=300):
                    self._chats[name] = gr.Chatbot(
                        label=name,
                        elem_id=f"chat-{number}",
                        height="60vh" if len(self.models) == 1 else "55vh",
                        buttons=["copy"],
                        editable="user",
                        latex_delimiters=[dict(zip(("left", "right", "display"), f, strict=True)) for f in FORMULAS],
                        feedback_options=None,
                    )
                    self._status[name] = gr.Textbox(
                        show_label=False,
                        container=False,
                        interactive=False,
                        lines=1,
                        max_lines=6,
                        elem_id=f"status-{number}",
                        elem_classes="status",
                    )

    def _add_input(self) -> None:
        self._box = gr.Textbox(
            show_label=False,
            container=False,
            lines=1,  # with more, Enter would start a new line
            max_lines=12,
            placeholder="Message (Enter sends, Shift+Enter starts a new line)",
            autofocus=True,
            elem_id="message",
        )
        with gr.Row():
            self._send = gr.Button("Send", variant="primary", elem_id="send", min_width=80)
            self._stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", min_width=80)
            self._again = gr.Button("Regenerate", elem_id="regenerate", min_width=80)
            self._new = gr.Button("New chat", elem_id="new", min_width=80)

    def _add_settings(self) -> None:
        with gr.Accordion("Settings", open=True, elem_id="settings"):
            self._system = gr.Textbox(
                label="System message", lines=3, max_lines=10, placeholder="the server's", elem_id="system"
            )
            self._temperature = gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", elem_id="temperature")
            self._top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p", elem_id="top_p")
            # A gr.Number that is empty says 0, and large seeds would be rounded.
            self._max_tokens = gr.Textbox(label="Max tokens", placeholder="as many as fit", elem_id="max_tokens")
            self._seed = gr.Textbox(label="Seed", placeholder="random", elem_id="seed")
            self._stops = gr.Textbox(
                label="Stop at",
                lines=2,
                max_lines=8,
                placeholder=r"one text per line; \n for a line end",
                elem_id="stops",
            )

    @property
    def _settings(self) -> list[Any]:
        return [self._system, self._temperature, self._top_p, self._max_tokens, self._seed, self._stops]

    def _connect(self) -> None:
        given = [self._kept, *self._settings]
        chats = list(self._chats.values())
        outputs = [
            *(self._kept, *chats, *self._status.values(), self._curl, self._box),
            *(self._send, self._stop, self._again, self._new),
        ]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # One listener for all of them: while an answer arrives, gradio then starts no second one.
        starts = [self._box.submit, self._send.click, self._again.click, *(chat.edit for chat in chats)]
        running = gr.on(starts, self._answer, [self._box, *given], outputs, trigger_mode="once", **hidden)
        running.then(self._ready, None, outputs, **hidden)  # also if it failed
        self._stop.click(self._stopped, None, outputs, cancels=[running], **hidden)
        emptied = [self._new.click, *(chat.clear for chat in chats)]
        gr.on(emptied, self._cleared, None, outputs, cancels=[running], **hidden)

    # --- what the buttons do

    async def _answer(
        self, request: gr.Request, event: gr.EventData, text: str, kept: Any, *settings: Any
    ) -> AsyncIterator[Updates]:
        """Let every model answer what is asked with a new message, again, or by an edited message."""
        try:
            rounds = self._asked(event, text, from_json(kept))
        except ValueError as problem:
            raise gr.Error(f"{problem}. Start a new chat.", print_exception=False) from None
        if not rounds:
            yield gr.skip()  # an iterator without values would empty all that is shown
            return
        system, *parameters = settings
        sent = _parameters(*parameters)
        bodies = {name: {"model": name, "messages": messages(rounds, name, system), **sent} for name in self.models}
        address = _address(request)
        commands = [curl(address, body, self._key_variable) for body in bodies.values()]
        is_new = _is_at(event, self._box) or _is_at(event, self._send)
        yield {**self._buttons(running=True), **({self._box: ""} if is_new else {}), self._curl: "\n\n".join(commands)}
        async for replies in self._api.replies(bodies):
            rounds[-1].answers = {name: reply.answer for name, reply in replies.items() if reply.has_begun}
            told = {self._status[name]: _told(reply, sent) for name, reply in replies.items()}
            yield {**self._conversation(rounds), **told}

    def _asked(self, event: gr.EventData, text: str, rounds: list[Round]) -> list[Round]:
        """The conversation whose last question is to be answered; empty if there is none."""
        if _is_at(event, self._again):
            return [*rounds[:-1], Round(rounds[-1].question)] if rounds else []
        for name, chat in self._chats.items():
            if _is_at(event, chat):
                return [*rounds[: round_at(rounds, name, event.index)], Round(without_literal(event.value))]
        return [*rounds, Round(text)] if text.strip() else []

    def _ready(self) -> Updates:
        return self._buttons(running=False)

    def _stopped(self) -> Updates:
        return {**self._buttons(running=False), **dict.fromkeys(self._status.values(), "Stopped.")}

    def _cleared(self) -> Updates:
        empty = dict.fromkeys(self._status.values(), "")
        return {**self._buttons(running=False), **self._conversation([]), **empty, self._curl: ""}

    def _conversation(self, rounds: list[Round]) -> Updates:
        return {self._kept: to_json(rounds)} | {chat: shown(rounds, name) for name, chat in self._chats.items()}

    def _buttons(self, running: bool) -> Updates:
        return {
            self._send: gr.update(visible=not running),
            self._stop: gr.update(visible=running),
            self._again: gr.update(interactive=not running),
            self._new: gr.update(interactive=not running),
        }


def mounted(page: Page, app: Any) -> None:
    """Put a page at the address / of a FastAPI application."""
    gr.mount_gradio_app(
        app,
        page.blocks,
        "/",
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=asset("fastchat.serve.web", "page.css"),
    )


def _is_at(event: gr.EventData, block: Block) -> bool:
    # gradio makes a copy of it for a session, with another number
    return event.target is not None and event.target.elem_id == block.elem_id


def _theme() -> Default:
    """Fonts of the machine: none is downloaded."""
    return Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _heading(models: Sequence[str], about: Sequence[tuple[str, str]]) -> str:
    facts = " · ".join(f"{escaped(what)} {escaped(value)}" for what, value in about)
    return f"<h1>{escaped(' and '.join(models))}</h1><p>{facts}</p>"


def _parameters(temperature: float, top_p: float, max_tokens: str, seed: str, stops: str) -> dict[str, Any]:
    """The parameters of a request: those that are set. The API says what is wrong with them."""
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": _number(max_tokens),
        "seed": _number(seed),
        "stop": [line.replace("\\n", "\n") for line in stops.splitlines() if line] or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _number(text: str) -> int | str | None:
    try:
        return int(text)
    except ValueError:
        return text.strip() or None


def _told(reply: Reply, sent: Mapping[str, Any]) -> str:
    """What is said about an answer below it."""
    length = counted(reply.num_tokens, "token")
    if reply.error:
        kept = "" if reply.has_begun else " Later requests leave this message out; Regenerate sends it again."
        return f"Error: {reply.error}{kept}"
    if reply.finish is None:
        return "..."
    told = f"{length} in {reply.seconds:.1f} s"
    if reply.finish == "length":
        reached = "Max tokens is reached" if reply.num_tokens == sent.get("max_tokens") else "the context is full"
        return f"{told}; cut: {reached}"
    return told if reply.answer.text else f"{told}; the answer is empty"


def _address(request: gr.Request) -> str:
    """The address of the server as the browser knows it."""
    headers = request.headers
    return headers.get("origin") or f"http://{headers['host']}"
