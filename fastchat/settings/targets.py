"""Which layers `--lora_target_modules` means, from the names of a model's layers. Needs neither torch nor peft.

Training reads the names from the loaded model (fastchat/model/lora_targets.py), the planner from config.json.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from fastchat.errors import SettingsError
from fastchat.settings.parsing import to_names

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"  # peft's word
# Ends of the names of parts in which an adapter gets no gradient. `indexer`: sparse attention, as in DeepSeek-V3.2,
# takes only the indices of its highest scores. `adapter_list`: Zamba2's own adapters, of which a block uses one.
NO_GRADIENT = ("indexer", "adapter_list")
# Names that peft takes for the weights of experts and of the router, as older versions of transformers named them, by
# model_type: it adapts those instead of layers with these names, such as the ones of shared experts.
_AS_MIXTRAL = ("mixtral", "minimax", "minimax_m2")
_AS_QWEN2_MOE = (
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
    "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe",
    "longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker", "sarvam_mla", "solar_open",
)  # fmt: skip
EXPERT_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_AS_MIXTRAL, ("gate", "w1", "w2", "w3")),
    **dict.fromkeys(_AS_QWEN2_MOE, ("gate", "gate_proj", "up_proj", "down_proj")),
}
_PATTERN = re.compile(r"[\\*+?(){}|^$]")


def read_targets(values: Sequence[str] | str, label: str = "--lora_target_modules") -> list[str]:
    """The targets in values as typed: names, `all-linear`, and regular expressions, which are kept whole.

    Names may be separated by spaces or commas, with stray quotes. Raises SettingsError for an invalid regular
    expression or if nothing is named.

    >>> read_targets(["q_proj,", "'k_proj','v_proj'", r".*\\.[0-3]\\.mlp\\.(up|down)_proj"])
    ['q_proj', 'k_proj', 'v_proj', '.*\\\\.[0-3]\\\\.mlp\\\\.(up|down)_proj']
    """
    targets: list[str] = []
    names: list[str] = []
    for value in [values] if isinstance(values, str) else values:
        if not is_pattern(value):
            names.append(value)
            continue
        try:
            re.compile(value)
        except re.error as problem:
            raise SettingsError(f"{label} {value!r} is not a valid regular expression: {problem}") from None
        targets.append(value)
    if names or not targets:
        targets = to_names(names, label) + targets
    return [ALL_LINEAR if target.lower() == ALL_LINEAR else target for target in dict.fromkeys(targets)]


def is_pattern(target: str) -> bool:
    """Whether a target is a regular expression and not a name: it has a character that no name of a module has.

    >>> [is_pattern(text) for text in ("q_proj", "layers.0.mlp", "['q_proj']", "[qkv]_proj", ".*_proj")]
    [False, False, False, True, True]
    """
    inner = target.strip().removeprefix("[").removesuffix("]")  # of a list
    return bool(_PATTERN.search(target)) or "[" in inner or "]" in inner


def matches(target: str, name: str) -> bool:
    """Whether `target` means the layer with the full name `name`, as in peft: a name matches whole parts at the end,
    a regular expression the full name.

    >>> matches("mlp.up_proj", "model.layers.0.mlp.up_proj"), matches("proj", "model.layers.0.mlp.up_proj")
    (True, False)
    """
    if is_pattern(target):
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith("." + target)


def seven_fit(blocks: Iterable[Collection[str]]) -> bool:
    """Whether the default names are this architecture's: each block, given by the names of its linear layers, has a
    layer of each of the seven. Otherwise the default is all linear layers of the blocks.

    >>> seven_fit([["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]])  # Phi-3
    False
    """
    leaves = [{name.rpartition(".")[2] for name in block} for block in blocks]
    return bool(leaves) and all(found.issuperset(LORA_TARGETS) for found in leaves)


def as_names(asked: Sequence[str] | None, chosen: Collection[str], everything: Collection[str]) -> list[str]:
    """Names that mean exactly the full names `chosen` among `everything`: those `asked` for, if they do, and otherwise
    the shortest."""
    if asked and not any(is_pattern(target) or target == ALL_LINEAR for target in asked):
        meant = {name for name in everything if any(matches(target, name) for target in asked)}
        if meant == set(chosen):
            return sorted(asked)
    return shortened(chosen, everything)


def shortened(chosen: Collection[str], everything: Iterable[str]) -> list[str]:
    """The shortest names that, as ends of full names, mean exactly the full names `chosen` among `everything`.

    None begins with a number, which would mean other layers in a model with more blocks.

    >>> shortened(["h.0.attn.c_proj", "h.0.ffn.0"], ["h", "h.0", "h.0.attn", "h.0.attn.c_proj", "h.0.ffn.0", "h.0.ffn"])
    ['c_proj', 'ffn.0']
    """
    chosen = set(chosen)
    taken = {end for name in everything if name not in chosen for end in _ends(name)}
    return sorted({next((end for end in _ends(name) if end not in taken), name) for name in chosen})


def _ends(name: str) -> list[str]:
    """The ends of a full name, the shortest first."""
    parts = name.split(".")
    starts = [at for at, part in enumerate(parts) if not part.isdigit()]
    return [".".join(parts[start:]) for start in reversed(starts)]
