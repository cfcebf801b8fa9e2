"""vLLM, where it is installed: its engine gets token ids, and stops at the stop ids of training.

Its engine runs in a process of its own, which vLLM starts and ends.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

from fastchat.checkpoint.trained_model import TrainedModel
from fastchat.errors import SettingsError
from fastchat.model.lora import check_adapter_directory
from fastchat.serve.engines.base import Engine, EngineError, Job, Token

# What an adapter may not have, because vLLM has no form for it.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "trained modules other than LoRA",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "LoRA on expert parameters",
}


class Vllm(Engine):
    """One engine for a full model, or for an adapter on its base."""

    name = "vLLM"

    def __init__(self, trained: TrainedModel, limit: int | None, most_jobs: int, gpus: int, remote_code: bool = False):
        self.limit = limit
        self._lora = _lora_of(trained)
        self._options: dict[str, Any] = {
            "model": trained.base,
            "max_num_seqs": most_jobs,
            "tensor_parallel_size": gpus,
            "max_logprobs": 20,
            "trust_remote_code": remote_code,
        }
        if limit is not None:
            self._options["max_model_len"] = limit
        if self._lora:
            self._options |= {"enable_lora": True, "max_lora_rank": self._lora["r"]}
            self._options["tokenizer"] = trained.path
        if trained.quantised:
            self._options["quantization"] = "bitsandbytes"
        self._trained, self._engine, self._numbers, self._jobs = trained, None, itertools.count(), 0

    async def start(self) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report each start to its authors
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._options))

    async def generate(self, job: Job) -> AsyncIterator[Token]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        assert self._engine is not None
        wanted = job.sampling
        parameters = SamplingParams(
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            max_tokens=job.max_tokens,
            stop_token_ids=list(job.stop_ids),
            logprobs=wanted.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        lora = LoRARequest("adapter", 1, self._trained.path) if self._lora else None
        made = self._engine.generate(
            TokensPrompt(prompt_token_ids=list(job.prompt)), parameters, f"job-{next(self._numbers)}", lora_request=lora
        )
        self._jobs += 1
        try:
            async for output in made:  # closing it aborts the request
                for token in _tokens(output.outputs[0], wanted.logprobs):
                    yield token
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        finally:
            self._jobs -= 1
            await made.aclose()

    @property
    def is_alive(self) -> bool:
        return self._engine is not None and not self._engine.errored

    @property
    def num_jobs(self) -> int:
        return self._jobs

    async def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()


def _tokens(output: Any, num_top: int | None) -> list[Token]:
    """The new tokens of one output."""
    if num_top is None:
        return [Token(token_id) for token_id in output.token_ids]
    made = []
    for token_id, found in zip(output.token_ids, output.logprobs, strict=True):
        best = sorted(((i, one.logprob) for i, one in found.items()), key=lambda pair: -pair[1])
        made.append(Token(token_id, found[token_id].logprob, tuple(best[:num_top])))
    return made


def _lora_of(trained: TrainedModel) -> dict[str, Any]:
    """The configuration of the adapter, {} for a full model. Raises SettingsError for one that vLLM cannot apply."""
    if not trained.is_adapter:
        return {}
    config = check_adapter_directory(trained.path)
    lacks = [what for key, what in _UNSUPPORTED.items() if config.get(key)]
    lacks += ["a RoPE scaling of its own"] if trained.rope else []
    if lacks:
        raise SettingsError(
            f"vLLM cannot serve the adapter {trained.path}: it has {' and '.join(lacks)}. Merge it first (fastchat "
            "merge), or pass --engine transformers."
        )
    return config
