"""Loading the frozen base: its own dtype, safetensors only, every weight accounted for, optionally in nf4."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastchat.bars import each
from fastchat.errors import ResourceError, SettingsError, say
from fastchat.model.attention import FLEX, check_attention, choose_attention, one_flex_kernel
from fastchat.model.lora_experts import in_block, whole_shape
from fastchat.model.multimodal import auto_class
from fastchat.model.rope import RopeChoice, apply_rope
from fastchat.model.source import check_model_directory, is_local, loading

# On a CPU with AVX512-BF16 it suggests a package that downloads code from the hub; it is not needed here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_config(model_dir: str, *, cache_dir: str | None = None, trust_remote_code: bool = False) -> Any:
    """The config of a folder or hub name. Raises SettingsError if there is no causal-LM base model to load."""
    from transformers import AutoConfig

    if is_local(model_dir):
        check_model_directory(model_dir)
    with loading(model_dir, "config", trust_remote_code=trust_remote_code):
        config = AutoConfig.from_pretrained(model_dir, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    method = stored_format(config)
    if method not in (None, MXFP4):
        raise SettingsError(
            f"{model_dir} is already quantised ({method}). Give the full-precision checkpoint it was made from; "
            "--q_lora True quantises that one to nf4 while loading."
        )
    return config


MXFP4 = "mxfp4"  # gpt-oss: the experts in 4 bits, which transformers turns into bf16 while loading


def stored_format(config: Any) -> str | None:
    """The format of the quantised weights in the checkpoint of `config`; None if they are not quantised."""
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return None
    return str(quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized.quant_method)


def load_base_model(
    model_dir: str,
    *,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    rope: RopeChoice | None = None,
    quantization: bool = False,
    compute_dtype: torch.dtype | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    extra: dict[str, Any] | None = None,
    partitioned: Callable[[torch.dtype], AbstractContextManager[None]] | None = None,
    for_training: bool = True,
) -> Any:
    """The causal LM in `model_dir`, with every weight read from the files; a multimodal one with all of its towers.

    `dtype`: of the weights; "auto" is that of the files. `attn_implementation`: from `choose_attention`; None chooses
    without FlashAttention. `quantization`: linear layers as nf4 with double quantisation, computing in
    `compute_dtype` (default: the weights' dtype). `device`: where to put the model; None leaves that to the trainer.
    `extra`: more arguments of `from_pretrained`, such as a device map. `partitioned`: a context, called with the
    weights' dtype, in which an engine partitions the weights while they are loaded; then `device` is ignored.
    Raises SettingsError for a folder that is not a base model, or whose weights do not match it.
    """
    config = load_config(model_dir, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    if rope is not None:
        apply_rope(config, rope)
    attention = attn_implementation or choose_attention(False, config=config)[0]
    if attention == FLEX:
        one_flex_kernel()
    options = _from_mxfp4(model_dir, q_lora=quantization) if stored_format(config) == MXFP4 else {}
    options |= extra or {}
    if quantization:
        options["quantization_config"] = nf4_config(compute_dtype or weights_dtype(dtype, config))
    if device is not None and partitioned is None:
        options["device_map"] = {"": torch.device(device)}
    division = partitioned(weights_dtype(dtype, config)) if partitioned else nullcontext()
    with loading(model_dir, "model", trust_remote_code=trust_remote_code), division:
        loaded: Any = auto_class(config).from_pretrained(
            model_dir,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    _check_loaded(model_dir, report, model, options)
    check_attention(model, attention)
    if quantization:
        _say_unquantised(model, model_dir)
        _keep_nf4_layout(model)
        if partitioned is None:
            _let_go_of_the_files(model)
    if for_training:
        model.config.use_cache = False
    return model


def _from_mxfp4(model_dir: str, *, q_lora: bool) -> dict[str, Any]:
    """Options that load a checkpoint in MXFP4 in 16 bits. Raises SettingsError with `q_lora`."""
    from transformers.utils.quantization_config import Mxfp4Config

    if q_lora:
        raise SettingsError(
            f"--q_lora: {model_dir} is quantised already (MXFP4), and transformers loads it in bf16 or in MXFP4, which "
            "cannot be trained, but not in nf4. Leave out --q_lora: nearly all weights are in the experts, which "
            "bitsandbytes would not quantise either."
        )
    say(f"{model_dir}: its experts are stored in MXFP4 and loaded in bf16.")
    return {"quantization_config": Mxfp4Config(dequantize=True)}


def nf4_config(compute_dtype: torch.dtype) -> Any:
    """4-bit NormalFloat with double quantisation.

    The codes are stored as uint8: DeepSpeed casts every floating-point parameter to its own precision, which would
    destroy codes stored in a float type, while ZeRO-3 partitions and gathers uint8 like any other dtype.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def describe_quantization(model: nn.Module) -> dict[str, Any]:
    """The quantisation found in `model`: numbers of layers, type, double quantisation, compute dtype.

    >>> describe_quantization(nf4_model)                    # doctest: +SKIP
    {'type': 'nf4', 'double_quant': True, 'linear4bit': 35, 'linear': 1, 'storage': 'uint8', 'compute_dtype': 'float32'}
    """
    layers = linear4bit_layers(model)
    plain = sum(type(m) is nn.Linear and "lora_" not in name for name, m in model.named_modules())
    if not layers:
        return {"type": None, "linear4bit": 0, "linear": plain}
    found = Counter(_nf4_layout(layer) for layer in layers.values())
    if len(found) != 1:
        raise AssertionError(f"mixed quantisation: {found}")
    quant_type, double, storage, compute = next(iter(found))
    return {
        "type": quant_type,
        "double_quant": bool(double),
        "linear4bit": len(layers),
        "linear": plain,
        "storage": str(storage).removeprefix("torch."),
        "compute_dtype": str(compute).removeprefix("torch."),
    }


def _nf4_layout(layer: Any) -> tuple[str, bool, torch.dtype, torch.dtype]:
    """(type, double quantisation, storage, compute dtype). The layer knows them too: FSDP replaces its weight."""
    weight = layer.weight
    if hasattr(weight, "quant_type"):
        return weight.quant_type, weight.compress_statistics, weight.quant_storage, layer.compute_dtype
    return layer.quant_state.quant_type, layer.quant_state.nested, weight.dtype, layer.compute_dtype


def dequantised_base(model_dir: str, **options: Any) -> Any:
    """The nf4 base as full tensors: exactly the weights that a quantised forward pass uses.

    `options` are those of `load_base_model`; `dtype` must be the one the base was quantised from (training.json has
    it), since rounding to bf16 first would give other codes.
    """
    model = load_base_model(model_dir, quantization=True, **options)
    dequantise(model)
    return model


@torch.no_grad()
def dequantise(model: nn.Module) -> None:
    """Replace every nf4 layer of `model`, in place, by the plain layer it was, with its dequantised values."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in each(linear4bit_layers(model).items(), "dequantising", "layer"):
        weight = dequantised_weight(layer)
        plain: Any = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        if getattr(layer, "source_cls", None) is Conv1D:
            plain, weight = Conv1D(layer.out_features, layer.in_features), weight.t().contiguous()
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    _forget_quantization(model)


def dequantised_weight(layer: Any) -> torch.Tensor:
    """The weight of a linear layer: of an nf4 one the values that its codes stand for."""
    if type(layer.weight).__name__ != "Params4bit":
        return layer.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def linear4bit_layers(model: nn.Module) -> dict[str, Any]:
    """The nf4 layers of `model` by name; empty if nothing is quantised."""
    quantized = {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    return {n: m for n, m in quantized.items() if type(m).__module__.startswith("bitsandbytes")}


def count_parameters(model: nn.Module, numel: Callable[[torch.Tensor], int] = torch.Tensor.numel) -> tuple[int, int]:
    """(trainable, total) numbers of parameters of `model`; nf4 ones count as the weights they encode.

    `numel`: the size of a whole parameter, which an engine may have partitioned.
    """
    trainable = total = 0
    codes = {id(layer.weight) for layer in linear4bit_layers(model).values()}
    for parameter in model.parameters():
        count = numel(parameter)
        if id(parameter) in codes:
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def weights_dtype(dtype: str | torch.dtype, config: Any) -> torch.dtype:
    """The torch dtype for the setting `dtype`; "auto" is the one in the model's `config`."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return config.get_text_config().dtype or config.dtype or torch.float32


def _check_loaded(model_dir: str, report: dict[str, Any], model: Any, options: dict[str, Any]) -> None:
    """Raise SettingsError unless every weight of the model came from the files and every file entry was used, because a
    layer left at its random initialisation would go unnoticed; ResourceError if a device map left a part out."""
    _check_fit(model, model_dir, options.get("max_memory") or {})
    for key, what in (
        ("missing_keys", "are missing and would stay randomly initialised"),
        ("mismatched_keys", "have another shape than config.json says"),
        ("unexpected_keys", "do not belong to any layer of this architecture"),
        ("error_msgs", "cannot be read"),
    ):
        names = sorted(str(name) for name in report.get(key) or ())
        if names:
            raise SettingsError(
                f"{model_dir}: {len(names)} weights {what} (such as {', '.join(names[:3])}). The weights and "
                "config.json do not match: download the folder again, or use the architecture it is for."
            )


def _say_unquantised(model: Any, model_dir: str) -> None:
    """Says which matrices of the blocks bitsandbytes did not quantise: it replaces layers whose class is nn.Linear (or
    Conv1D), not experts, which are parameters, nor other classes. Raises SettingsError if that is everything."""
    if not linear4bit_layers(model):
        raise SettingsError(
            f"--q_lora True: bitsandbytes quantises layers of the class nn.Linear only, and {type(model).__name__} "
            f"({model_dir}) has none: train without --q_lora."
        )
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)] + [model.get_output_embeddings()]
    apart = {id(p) for m in tables if m is not None for p in m.parameters()}
    left = {
        name: p
        for name, p in model.named_parameters()
        if len(whole_shape(p)) > 1 and type(p).__name__ != "Params4bit" and id(p) not in apart
    }
    if left:
        number = sum(whole_shape(p).numel() for p in left.values())
        size = sum(whole_shape(p).numel() * p.element_size() for p in left.values())
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in left.values()})
        say(
            f"q_lora: bitsandbytes quantises linear layers only; {number:,} parameters stay in {' and '.join(dtypes)} "
            f"({size / 2**30:.2f} GiB): {', '.join(sorted({in_block(name) for name in left}))}."
        )


def _check_fit(model: Any, model_dir: str, allowed: dict[int | str, int]) -> None:
    """Raise ResourceError if accelerate left a part of `model` on another device than those `allowed`."""
    parts = (getattr(model, "hf_device_map", None) or {}) if allowed else {}
    known = {str(device) for device in allowed}
    left = [name for name, device in parts.items() if str(device).removeprefix("cuda:") not in known]
    if left:
        raise ResourceError(
            f"{model_dir} does not fit into the memory that it may use ({len(left)} of {len(parts)} parts are left): "
            "use more GPUs, --load-8bit or --load-4bit."
        )


def _keep_nf4_layout(model: nn.Module) -> None:
    """Prevent bitsandbytes from repacking weights during evaluation on a CPU with AVX512-BF16.

    The repacked layout has no backward pass (after the first evaluation the gradients would silently be wrong), needs
    sizes that small models do not have, and is not the layout that ZeRO-3 partitioned.
    """
    for layer in linear4bit_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def _let_go_of_the_files(model: nn.Module) -> None:
    """Copies the weights that were not quantised on a CPU: as views into the mapped files they would keep all of the
    unquantised weights in memory, several times the size of the quantised ones."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.clone()


def _forget_quantization(model: Any) -> None:
    """Make the library treat a dequantised model as an ordinary one."""
    from transformers import PreTrainedModel

    for owner, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        vars(owner).pop(name, None)
    model.is_quantized = model.is_loaded_in_4bit = False
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = False
    say("The nf4 base was dequantised into full tensors.")


def read_configs(folder: Path, *, adapter: bool) -> None:
    """Loads the configurations of a result as users will; raises what the libraries raise."""
    from peft import PeftConfig
    from transformers import AutoConfig, GenerationConfig

    if adapter:
        PeftConfig.from_pretrained(str(folder))
    else:
        AutoConfig.from_pretrained(str(folder))
        GenerationConfig.from_pretrained(str(folder))
