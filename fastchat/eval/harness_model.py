"""lm-evaluation-harness with our models: `python -m fastchat.eval.harness_model --model fastchat ...`

The harness's own Hugging Face model, with what it would not find itself: the base, RoPE and quantisation of an adapter,
the template of its training, and every stop id of that template.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from fastchat.checkpoint.trained_model import load_trained_tokenizer
from fastchat.data.encoding.saved_template import install_template
from fastchat.eval.harness import MODEL_KIND
from fastchat.eval.loading import load_for_evaluation

_DEFAULTS = ("cuda", "cuda:0")  # what lm_eval passes where no --device is given, also without a GPU


@register_model(MODEL_KIND)
class TrainedModelLM(HFLM):
    """A model loaded as it was trained."""

    def __init__(
        self,
        path: str,
        base_model_path: str | None = None,
        conv_template: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ):
        """`options`: those of HFLM, such as batch_size. Raises UserError if the model cannot be loaded."""
        loaded = load_for_evaluation(
            path,
            base_model_path=base_model_path,
            conv_template=conv_template,
            device=None if device in _DEFAULTS else device,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = load_trained_tokenizer(loaded.trained, trust_remote_code=trust_remote_code)
        install_template(tokenizer, loaded.chat_encoder)
        half = {} if loaded.half is None else {"mixed_precision_dtype": loaded.half}
        super().__init__(pretrained=loaded.model, tokenizer=tokenizer, **{**half, **options})
        self._stop_ids = list(loaded.chat_encoder.stop_ids)
        self._stop_strings = list(loaded.chat_encoder.stop_strings)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        ends = {"eos_token_id": self._stop_ids} if self._stop_ids else {}
        return super()._model_generate(
            context, max_length, [*stop, *self._stop_strings], **{**ends, **generation_kwargs}
        )


if __name__ == "__main__":
    cli_evaluate()
