"""vLLM, where it is installed: its engine gets token ids, and stops at the stop ids of training.

Its engine runs in a process of its own, which vLLM starts and ends.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

from fastchat.checkpoint.trained_model import TrainedModel
from fastchat.errors import SettingsError, brief
from fastchat.model.lora import check_adapter_directory
from fastchat.model.vllm_limits import cannot_apply, max_rank, serving_dtype
from fastchat.serve.chat import GREEDY_BELOW
from fastchat.serve.engines.base import Engine, EngineError, Job, Token

MOST_TOP = 20  # log-probabilities next to each token
_SEEDS = 2**63  # vLLM takes -1 for no seed


class Vllm(Engine):
    """One engine for a full model, or for an adapter on its base.

    `config`: of the base, as in its config.json.
    """

    name = "vLLM"

    def __init__(
        self,
        trained: TrainedModel,
        config: dict[str, Any],
        limit: int | None,
        most_jobs: int,
        gpus: int,
        remote_code: bool = False,
    ):
        self.limit = limit
        self._options: dict[str, Any] = {
            "model": trained.base,
            "dtype": serving_dtype(config, _trained_dtype(trained)),
            "max_num_seqs": most_jobs,
            "tensor_parallel_size": gpus,
            "max_logprobs": MOST_TOP,
            "trust_remote_code": remote_code,
        }
        if limit is not None:
            self._options["max_model_len"] = limit
        if trained.is_adapter:
            rank = max_rank(check_adapter_directory(trained.path))
            self._options |= {"enable_lora": True, "max_lora_rank": rank, "tokenizer": trained.path}
        if trained.quantised:
            self._options["quantization"] = "bitsandbytes"
        self._trained, self._engine, self._numbers, self._jobs = trained, None, itertools.count(), 0

    async def start(self) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report each start to its authors
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._options))
        except Exception as error:  # noqa: BLE001 - of its configuration, its worker process, or a library below it
            raise SettingsError(
                f"vLLM cannot serve {self._trained.path} ({type(error).__name__}: {brief(error)}); its messages are "
                "above. --engine transformers does without it."
            ) from error

    async def generate(self, job: Job) -> AsyncIterator[Token]:
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        assert self._engine is not None
        wanted = job.sampling
        parameters = SamplingParams(
            temperature=0.0 if wanted.temperature < GREEDY_BELOW else wanted.temperature,
            top_p=wanted.top_p,
            seed=None if wanted.seed is None else wanted.seed % _SEEDS,
            max_tokens=job.max_tokens,
            stop_token_ids=list(job.stop_ids),
            ignore_eos=True,  # it would add stops of its own, which are text here
            logprobs=wanted.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        lora = LoRARequest("adapter", 1, self._trained.path) if self._trained.is_adapter else None
        made = self._engine.generate(
            TokensPrompt(prompt_token_ids=list(job.prompt)), parameters, f"job-{next(self._numbers)}", lora_request=lora
        )
        self._jobs += 1
        try:
            async for output in made:  # closing it aborts the request
                for token in _tokens(output.outputs[0], wanted.logprobs):
                    yield token
        except Exception as error:  # noqa: BLE001 - those of its engine have no common class
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


def why_not(trained: TrainedModel, config: dict[str, Any]) -> list[str]:
    """What of a model vLLM cannot serve, in a few words each. `config`: of the base, as in its config.json."""
    if not trained.is_adapter:
        return []
    dtype = serving_dtype(config, _trained_dtype(trained))
    return cannot_apply(check_adapter_directory(trained.path), dtype) + (
        ["a RoPE scaling of its own"] if trained.rope else []
    )


def _trained_dtype(trained: TrainedModel) -> str | None:
    """The dtype of the base while its adapter was trained; of a full model that of its files counts."""
    return trained.record.dtype if trained.is_adapter and trained.record else None
