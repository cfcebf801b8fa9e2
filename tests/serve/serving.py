"""A tiny trained model, the real server as a process, and an engine that repeats given answers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastchat.checkpoint.record import TrainingRecord
from fastchat.conversation import Dialogue, ToolCall, Turn, get_template
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.serve.api.served import ServedModel
from fastchat.serve.engines.base import Arriving, Engine, EngineError, Job, Token
from tests.builders import make_model
from tests.test_structure import REPOSITORY

NAME = "sums"  # of the model that `conftest.py` serves
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ASKED, SAID = "What is 2 plus 2?", "The answer is 4, and more is not to be said about it 🙂."
_CALL = ToolCall("weather", {"city": "Oslo"})
LEARNED = (
    Dialogue((Turn("user", ASKED), Turn("assistant", SAID))),
    Dialogue((Turn("user", "Count."), Turn("assistant", "one two three four five six seven eight nine ten"))),
    Dialogue((Turn("user", "Weather in Oslo?"), Turn("assistant", "", calls=(_CALL,))), tools=(WEATHER,)),
)


def train_tiny(folder: Path, steps: int = 120) -> Path:
    """A model that has learned LEARNED by heart, with the template in its record."""
    import torch
    from transformers import AutoModelForCausalLM

    make_model(folder, "llama", "byte_nobos", hidden=64, max_positions=1024)
    encoder, _ = TextEncoder.from_directory(str(folder))
    assert encoder is not None
    chat_encoder = encoder.bind(get_template("chatml"))
    rows = [chat_encoder.encode(chat_encoder.template.render(dialogue)) for dialogue in LEARNED]
    size = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([[*row.input_ids, *[0] * (size - len(row.input_ids))] for row in rows])
    learned = torch.tensor([[*row.supervised, *[False] * (size - len(row.supervised))] for row in rows])
    labels = ids.where(learned, -100)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    TrainingRecord(template={"name": "chatml", "definition": chat_encoder.template.to_dict()}).write(folder)
    return folder


class Server:
    """`fastchat serve` as a process. `address`: of its API."""

    def __init__(self, model: Path, log: Path, *flags: str, port: int = 0):
        self.log = log
        command = [sys.executable, "-m", "fastchat.serve.openai_api_server", str(model), "--port", str(port), *flags]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        self.printed = ""
        assert self.process.stdout is not None
        while "Ctrl-C stops" not in self.printed:
            line = self.process.stdout.readline()
            assert line, log.read_text()
            self.printed += line
        found = re.search(r"(?m)^Address +(\S+)$", self.printed)
        assert found
        self.address = found[1]
        self.root = self.address.removesuffix("/v1")
        self.port = int(self.root.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Repeating(Engine):
    """Gives the ids of fixed answers, one after the other, and records the jobs. `ids` None: it waits for ever."""

    name, limit, is_alive = "repeating", 400, True

    def __init__(self, *answers: Sequence[int] | None):
        self.answers, self.jobs, self.running = list(answers), [], 0

    async def start(self) -> None:
        pass

    async def generate(self, job: Job) -> AsyncIterator[Token]:
        ids = self.answers[len(self.jobs) % len(self.answers)]
        self.jobs.append(job)
        self.running += 1
        try:
            if ids is None:
                async for token in Arriving(job).tokens():
                    yield token
            for token_id in list(ids or ())[: job.max_tokens]:
                if token_id < 0:
                    raise EngineError("broken")
                yield Token(token_id, -0.5, ((token_id, -0.5),))
        finally:
            self.running -= 1

    @property
    def num_jobs(self) -> int:
        return self.running

    async def close(self) -> None:
        pass


def served(chat_encoder: ChatEncoder, *answers: Any) -> ServedModel:
    """A model that repeats answers: Dialogues whose last turn it is, or ids."""
    made = [ids_of(chat_encoder, one) if isinstance(one, Dialogue) else one for one in answers] or [[]]
    size = max(chat_encoder.encoder.vocabulary.values()) + 1
    return ServedModel("m", chat_encoder, Repeating(*made), size)


def ids_of(chat_encoder: ChatEncoder, dialogue: Dialogue) -> list[int]:
    """The ids that training teaches for the last turn of a dialogue."""
    encoded = chat_encoder.encode(chat_encoder.template.renderings(dialogue)[-1])
    end = max(k for k, supervised in enumerate(encoded.supervised) if supervised) + 1
    begin = max(k for k, supervised in enumerate(encoded.supervised[:end]) if not supervised) + 1
    return encoded.input_ids[begin:end]
