"""Upstream's interface to models: which template belongs to a model path, and loading by path.

Templates are chosen as upstream does, with a table (adapters.json); loading is this project's. No heavy imports.
"""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastchat.conversation import Conversation, conv_templates, get_conv_template
from fastchat.conversation.builtin import builtin
from fastchat.errors import SettingsError, say
from fastchat.files import read_json
from fastchat.upstream_names import refuse

if TYPE_CHECKING:
    import torch

    from fastchat.modules.awq import AWQConfig
    from fastchat.modules.exllama import ExllamaConfig
    from fastchat.modules.gptq import GptqConfig
    from fastchat.modules.xfastertransformer import XftConfig

_TABLE = read_json(Path(__file__).with_name("adapters.json"))
ANTHROPIC_MODEL_LIST, OPENAI_MODEL_LIST = tuple(_TABLE["anthropic"]), tuple(_TABLE["openai"])
_UNKNOWN = "one_shot"  # upstream's template for a model that no adapter matches
_DEVICES = ("cpu", "cuda", "mps", "xpu", "npu")
_ELSEWHERE = "is not available here; load the model with transformers' AutoModelForCausalLM.from_pretrained instead"


class BaseModelAdapter:
    """Adapter for a family of models: subclass it and pass the class to `register_model_adapter`."""

    use_fast_tokenizer = True

    def match(self, model_path: str) -> bool:
        """Whether the model is of this family."""
        return True

    def load_model(self, model_path: str, from_pretrained_kwargs: dict) -> tuple[Any, Any]:
        """(model ready to generate, tokenizer). Of an adapter's folder: its base, as it was trained, with the adapter.

        `from_pretrained_kwargs`: "torch_dtype" (or "dtype") and "revision"; others raise NotImplementedError.
        """
        from fastchat.checkpoint.trained_model import find_trained, load_trained, load_trained_tokenizer

        options = dict(from_pretrained_kwargs)
        dtype = options.pop("dtype", options.pop("torch_dtype", "auto"))
        if options.pop("revision", "main") != "main":
            raise NotImplementedError(
                "revision: download it first (hf download REPO --revision NAME --local-dir DIR) and give that folder"
            )
        if options:
            raise NotImplementedError(f"{', '.join(options)} {_ELSEWHERE}")
        tuned = find_trained(model_path)
        tokenizer = load_trained_tokenizer(tuned)
        return load_trained(tuned, dtype=dtype), tokenizer

    def load_compress_model(
        self, model_path: str, device: str, torch_dtype: torch.dtype, revision: str = "main"
    ) -> Any:
        """Upstream's 8-bit loading. Raises NotImplementedError."""
        raise NotImplementedError(f"load_8bit {_ELSEWHERE}, with a BitsAndBytesConfig")

    def get_default_conv_template(self, model_path: str) -> Conversation:
        """A fresh conversation with the family's template."""
        return get_conv_template(_template_by_name(model_path))


class _TableAdapter(BaseModelAdapter):
    """A row of adapters.json: patterns of a model path, without regard to case."""

    pattern = ""
    templates: tuple[tuple[str, str], ...] = ()

    def match(self, model_path: str) -> bool:
        return bool(re.search(self.pattern, model_path, re.I))

    def get_default_conv_template(self, model_path: str) -> Conversation:
        return get_conv_template(next(name for words, name in self.templates if re.search(words, model_path, re.I)))


class PeftModelAdapter(BaseModelAdapter):
    """The folder of a LoRA adapter, or of any other result of this project."""

    def match(self, model_path: str) -> bool:
        folder = Path(model_path).expanduser()
        return "peft" in model_path.lower() or any((folder / name).is_file() for name in _RESULT_FILES)

    def get_default_conv_template(self, model_path: str) -> Conversation:
        """The template it was trained with; of an adapter without a record, that of its base."""
        from fastchat.checkpoint.trained_model import find_trained

        if not Path(model_path).expanduser().is_dir():
            return super().get_default_conv_template(model_path)
        tuned = find_trained(model_path)
        name = tuned.template_name
        if name in conv_templates:
            return get_conv_template(name)
        if name is not None:
            raise SettingsError(
                f"{model_path} was trained with the template {name}, which is not registered here: use "
                "tokenizer.apply_chat_template, or register it first (fastchat.conversation.load_template_file)"
            )
        if tuned.is_adapter:
            return get_conversation_template(tuned.base)
        return super().get_default_conv_template(model_path)


_RESULT_FILES = ("adapter_config.json", "training.json")
_classes: dict[str, type[BaseModelAdapter]] = {
    row["name"]: type(
        row["name"], (_TableAdapter,), {"pattern": row["match"], "templates": tuple(map(tuple, row["templates"]))}
    )
    for row in _TABLE["adapters"]
}
model_adapters: list[BaseModelAdapter] = []


def register_model_adapter(cls: type[BaseModelAdapter]) -> None:
    """Register an adapter class; classes registered earlier are tried first."""
    model_adapters.append(cls())


for _cls in (PeftModelAdapter, *_classes.values(), BaseModelAdapter):
    register_model_adapter(_cls)


def get_model_adapter(model_path: str) -> BaseModelAdapter:
    """The first adapter that matches the last part of a path, else the first that matches the whole path."""
    name = Path(model_path).name or model_path
    for adapter in model_adapters:
        if type(adapter) is not BaseModelAdapter and adapter.match(name):
            return adapter
    for adapter in model_adapters:
        if adapter.match(model_path):
            return adapter
    raise ValueError(f"No valid model adapter for {model_path}")


def get_conversation_template(model_path: str) -> Conversation:
    """A fresh conversation with the template that upstream takes for a model path (or a name such as "vicuna").

    If upstream has none, the table of current model families is used; if that has none either, upstream's `one_shot`
    is used, with a message.
    """
    return get_model_adapter(model_path).get_default_conv_template(model_path)


def load_model(
    model_path: str,
    device: str = "cuda",
    num_gpus: int = 1,
    max_gpu_memory: str | None = None,
    dtype: torch.dtype | None = None,
    load_8bit: bool = False,
    cpu_offloading: bool = False,
    gptq_config: GptqConfig | None = None,
    awq_config: AWQConfig | None = None,
    exllama_config: ExllamaConfig | None = None,
    xft_config: XftConfig | None = None,
    revision: str = "main",
    debug: bool = False,
) -> tuple[Any, Any]:
    """(model on `device`, tokenizer) of a folder or hub name; also of an adapter's folder.

    `dtype`: default float32 on the CPU, float16 elsewhere, as upstream. The model's own code is not run, and
    weights come from safetensors. Raises NotImplementedError for several GPUs and for quantised formats, ValueError
    (SettingsError) for a model that cannot be loaded.
    """
    import torch

    if device not in _DEVICES:
        raise ValueError(f"device {device!r} is not one of {', '.join(_DEVICES)}")
    refused = {
        "num_gpus > 1": num_gpus != 1,
        "max_gpu_memory": bool(max_gpu_memory),
        "load_8bit": load_8bit,
        "cpu_offloading": cpu_offloading,
        "gptq_config": gptq_config is not None and gptq_config.wbits < 16,
        "awq_config": awq_config is not None and awq_config.wbits < 16,
        "exllama_config": exllama_config is not None,
        "xft_config": xft_config is not None,
    }
    asked = [name for name, given in refused.items() if given]
    if asked:
        raise NotImplementedError(f"{', '.join(asked)} {_ELSEWHERE}")
    wanted = dtype or (torch.float32 if device == "cpu" else torch.float16)
    options = {"torch_dtype": wanted, "revision": revision}
    model, tokenizer = get_model_adapter(model_path).load_model(model_path, options)
    if device != "cpu":
        model.to(device)
    if debug:
        print(model)
    return model, tokenizer


def get_generate_stream_function(model: Any, model_path: str) -> Any:
    """`fastchat.serve.inference.generate_stream`, which takes every causal language model."""
    from fastchat.serve.inference import generate_stream

    return generate_stream


# Flag -> arguments for argparse; upstream's names, defaults and choices.
_MODEL_ARGS: dict[str, dict[str, Any]] = {
    "--model-path": {"type": str, "default": "lmsys/vicuna-7b-v1.5", "help": "folder of the model, or a hub name"},
    "--revision": {"type": str, "default": "main", "help": "branch, tag or commit on the hub"},
    "--device": {"type": str, "choices": list(_DEVICES), "default": "cuda", "help": "where the model runs"},
    "--gpus": {"type": str, "default": None, "help": "which GPUs, such as 0,2"},
    "--num-gpus": {"type": int, "default": 1},
    "--max-gpu-memory": {"type": str, "help": "GPU memory for weights, such as 13GiB"},
    "--dtype": {"type": str, "choices": ["float32", "float16", "bfloat16"], "default": None},
    "--load-8bit": {"action": "store_true"},
    "--cpu-offloading": {"action": "store_true"},
    "--gptq-ckpt": {"type": str, "default": None},
    "--gptq-wbits": {"type": int, "default": 16, "choices": [2, 3, 4, 8, 16]},
    "--gptq-groupsize": {"type": int, "default": -1},
    "--gptq-act-order": {"action": "store_true"},
    "--awq-ckpt": {"type": str, "default": None},
    "--awq-wbits": {"type": int, "default": 16, "choices": [4, 16]},
    "--awq-groupsize": {"type": int, "default": -1},
    "--enable-exllama": {"action": "store_true"},
    "--exllama-max-seq-len": {"type": int, "default": 4096},
    "--exllama-gpu-split": {"type": str, "default": None},
    "--exllama-cache-8bit": {"action": "store_true"},
    "--enable-xft": {"action": "store_true"},
    "--xft-max-seq-len": {"type": int, "default": 4096},
    "--xft-dtype": {"type": str, "choices": ["fp16", "bf16", "int8", "bf16_fp16", "bf16_int8"], "default": None},
}


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """Add upstream's flags about the model; `load_model` refuses what is not available."""
    for flag, options in _MODEL_ARGS.items():
        parser.add_argument(flag, **options)


def remove_parent_directory_name(model_path: str) -> str:
    """The last part of a path."""
    return model_path.removesuffix("/").split("/")[-1]


@cache
def _template_by_name(model_path: str) -> str:
    """The template of a model that upstream has no adapter for; warns once per path if none is known."""
    lower = Path(model_path).name.lower()
    named = next((name for words, name in builtin().by_name if all(word in lower for word in words)), None)
    if named in conv_templates:
        return str(named)
    say(f"template: {_UNKNOWN}, as in FastChat, because none is known for {model_path}")
    return _UNKNOWN


_refused = refuse(__name__)


def __getattr__(name: str) -> Any:
    """Upstream's classes of adapters, by name."""
    return _classes[name] if name in _classes else _refused(name)
