"""The engine for vLLM, with a stand-in of vLLM that has the signatures and limits of its sources."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fastchat.errors import SettingsError
from fastchat.serve.api.served import ServedModel
from fastchat.serve.engines.base import EngineError, Job, Sampling, Token
from fastchat.serve.loading import load_served
from fastchat.serve.openai_api_server import build_parser
from tests.model.adapters import save_random_adapter

DELTA = object()


@dataclass
class AsyncEngineArgs:
    model: str
    dtype: str
    max_num_seqs: int
    tensor_parallel_size: int
    max_logprobs: int
    trust_remote_code: bool
    max_model_len: int | None = None
    enable_lora: bool = False
    max_lora_rank: int = 16
    tokenizer: str | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:
        assert self.max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        assert self.dtype in ("auto", "half", "float16", "bfloat16", "float", "float32")
        assert not self.enable_lora or self.dtype in ("auto", "float16", "bfloat16")


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    seed: int | None
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int | None
    detokenize: bool
    output_kind: object

    def __post_init__(self) -> None:
        assert self.seed is None or 0 <= self.seed < 2**63


class EngineDeadError(Exception):
    pass


class AsyncLLM:
    """Answers with 5, 6, 7; the prompt [0] finds the engine dead."""

    errored = False

    def __init__(self, arguments: AsyncEngineArgs):
        self.arguments, self.asked, self.aborted = arguments, [], 0

    @classmethod
    def from_engine_args(cls, arguments: AsyncEngineArgs) -> AsyncLLM:
        if "broken" in arguments.model:
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        return cls(arguments)

    async def generate(
        self, prompt: dict, sampling_params: SamplingParams, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        self.asked.append((prompt["prompt_token_ids"], sampling_params, request_id, lora_request))
        try:
            for ids in ([5], [6, 7]):
                if prompt["prompt_token_ids"] == [0]:
                    raise EngineDeadError("EngineCore encountered an issue.")
                found = [{i: SimpleNamespace(logprob=-0.5), 9: SimpleNamespace(logprob=-0.1)} for i in ids]
                logprobs = None if sampling_params.logprobs is None else found
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs)])
        except GeneratorExit:
            self.aborted += 1
            raise

    def shutdown(self) -> None:
        self.errored = True


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.inputs": {"TokensPrompt": dict},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: (name, number, path)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA=DELTA), "SamplingParams": SamplingParams},
    }
    parents = {name.rsplit(".", k)[0] for name in names for k in range(1, name.count(".") + 1)}
    for name in sorted({*names, *parents}):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update({"__path__": []}, **names.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)


def load(folder: Path, *flags: str) -> ServedModel:
    args = build_parser().parse_args([str(folder), "--device", "cuda", *flags])
    (model,) = load_served(args, str(folder), "m", args.conv_template, None).values()
    return model


def options(model: ServedModel) -> dict[str, Any]:
    engine: Any = model.engine
    arguments = engine._engine.arguments
    return {field.name: getattr(arguments, field.name) for field in fields(arguments)}


@pytest.mark.usefixtures("vllm")
def test_an_adapter_reaches_vllm_as_it_was_trained(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    base = tiny_model_dir("llama", "byte_nobos", dtype="bfloat16")
    folder, _ = save_random_adapter(tmp_path / "a", base, template="chatml")
    model = load(folder)
    eos = model.chat_encoder.encoder.added["<|im_end|>"]["id"]
    assert eos in model.chat_encoder.stop_ids

    async def work() -> None:
        await model.engine.start()
        found = options(model)
        assert (found["model"], found["tokenizer"]) == (str(base), str(folder))
        assert (found["max_lora_rank"], found["dtype"], found["max_model_len"]) == (8, "bfloat16", 512)
        job = Job([1, 2], 9, (3, eos), Sampling(1e-6, 0.9, -1, 1))
        assert [token async for token in model.engine.generate(job)] == [
            Token(i, -0.5, ((9, -0.1),)) for i in (5, 6, 7)
        ]
        engine: Any = model.engine
        prompt, sampling, _, lora = engine._engine.asked[0]
        assert prompt == [1, 2] and lora == ("adapter", 1, str(folder))
        assert (sampling.temperature, sampling.seed, sampling.stop_token_ids) == (0.0, 2**63 - 1, [3, eos])
        assert sampling.ignore_eos and not sampling.detokenize and sampling.output_kind is DELTA

        tokens = engine.generate(Job([1], 9, (), Sampling()))
        assert await anext(tokens) == Token(5)
        assert engine.num_jobs == 1
        await tokens.aclose()
        assert engine.num_jobs == 0 and engine._engine.aborted == 1
        with pytest.raises(EngineError, match="EngineDeadError"):
            [token async for token in engine.generate(Job([0], 9, (), Sampling()))]
        assert engine.num_jobs == 0 and engine.is_alive
        await engine.close()
        assert not engine.is_alive

    asyncio.run(work())


@pytest.mark.usefixtures("vllm")
def test_float32_stays_float32_and_a_failed_start_is_said(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = load(tiny_model_dir("llama", "byte_nobos"), "--conv-template", "chatml")
    asyncio.run(model.engine.start())
    assert options(model)["dtype"] == "float32" and not options(model)["enable_lora"]
    (tmp_path / "broken").symlink_to(tiny_model_dir("llama", "byte_nobos"))
    model = load(tmp_path / "broken", "--conv-template", "chatml")
    with pytest.raises(SettingsError, match="Engine core initialization failed.*--engine transformers"):
        asyncio.run(model.engine.start())


@pytest.mark.usefixtures("vllm")
def test_what_vllm_cannot_serve_is_served_otherwise_and_said(
    tmp_path: Path, tiny_model_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = save_random_adapter(tmp_path / "a", tiny_model_dir("llama", "byte_nobos"), template="chatml")
    with pytest.raises(SettingsError, match="it has weights in float32.*--engine transformers"):
        load(folder, "--engine", "vllm")
    args = build_parser().parse_args([str(folder), "--device", "cpu"])
    (model,) = load_served(args, str(folder), "m", None, None).values()
    assert "batching" in model.engine.name and "vLLM is not used: --device cpu" in capsys.readouterr().err
