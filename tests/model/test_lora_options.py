"""The options of an adapter: how it starts, what it trains besides matrices, and what is refused."""

from __future__ import annotations

import json
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.checkpoint.adapter import write_adapter
from fastchat.checkpoint.gather import IN_PLACE, gather_trained
from fastchat.errors import SettingsError
from fastchat.model import first_weights
from fastchat.model.first_weights import FirstWeights
from fastchat.model.full_modules import check_tied
from fastchat.model.loading import dequantised_weight, load_base_model
from fastchat.model.lora import add_lora, load_adapter
from fastchat.settings.lora_options import LoraOptions, check_combination, check_engine, check_init, parse_layers
from tests.model.adapters import logits, save_random_adapter


def load(base: Path, **more: Any) -> Any:
    return load_base_model(str(base), **more)


def saved(model: Any, folder: Path) -> Path:
    folder.mkdir()
    write_adapter(folder, model, gather_trained(model, IN_PLACE))
    return folder


def moved(model: Any) -> Any:
    """Every trained weight changed a little, as training would."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    return model.eval()


# ---- values and combinations ----


@pytest.mark.parametrize(
    ("words", "wanted"), [(["0-2,", "7"], [0, 1, 2, 7]), (["[3, 1]"], [1, 3]), ([], []), (["5-5"], [5])]
)
def test_layers_as_people_write_them(words: list[str], wanted: list[int]) -> None:
    assert parse_layers(words) == wanted


@pytest.mark.parametrize("word", ["3-1", "-1", "first", "1.5", "2:4"])
def test_what_is_no_layer(word: str) -> None:
    with pytest.raises(SettingsError, match="neither the number of a layer nor a range"):
        parse_layers([word])


@pytest.mark.parametrize("init", ["pisa", "pissa_niter_", "pissa_niter_x", "PiSSA", "true", "corda"])
def test_an_unknown_start_is_refused(init: str) -> None:
    with pytest.raises(SettingsError, match="it can be default, gaussian, pissa, pissa_niter_N"):
        check_init(init)


PLAIN: dict[str, Any] = {
    **{"init": "default", "use_dora": False, "modules_to_save": [], "trainable_tokens": [], "targets": ["q_proj"]},
    **{"q_lora": False, "continues": False},
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init": "pissa", "continues": True}, "trains an existing one further: keep one"),
        ({"init": "loftq"}, "add --q_lora True"),
        ({"init": "pissa_niter_3", "use_dora": True}, "use --lora_init default, gaussian or eva"),
        ({"init": "olora", "use_dora": True}, "peft"),
        ({"init": "loftq", "q_lora": True, "use_dora": True}, "peft"),
        ({"init": "eva", "trainable_tokens": ["5"]}, "peft"),
        ({"modules_to_save": ["model.lm_head"], "targets": ["q_proj", "lm_head"]}, "both name lm_head"),
    ],
)
def test_contradictions(values: dict[str, Any], message: str) -> None:
    check_combination(**PLAIN)
    with pytest.raises(SettingsError, match=message):
        check_combination(**PLAIN | values)


@pytest.mark.parametrize(
    ("values", "library"), [({"trainable_tokens": ["5"]}, "peft"), ({"use_dora": True, "q_lora": True}, "peft")]
)
def test_what_zero3_cannot(values: dict[str, Any], library: str) -> None:
    asked = {"trainable_tokens": [], "use_dora": False, "q_lora": False} | values
    check_engine(**asked, zero_stage=2)
    with pytest.raises(SettingsError, match=library):
        check_engine(**asked, zero_stage=3)


# ---- how an adapter starts ----


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_3", "olora"])
@pytest.mark.parametrize(
    ("arch", "targets", "dtype", "quantised"),
    [
        ("llama", None, "float32", False),
        ("llama", ["q_proj", "lm_head"], "bfloat16", False),
        ("llama", None, "float32", True),
        ("gpt2", ["c_attn", "c_fc"], "float32", False),  # its layers hold their weights transposed
    ],
)
def test_an_adapter_of_the_bases_own_parts(
    init: str, arch: str, targets: Any, dtype: str, quantised: bool, tmp_path: Path, tiny_model_dir: Any
) -> None:
    base = tiny_model_dir(arch, dtype=dtype, hidden=64)
    how = {"quantization": quantised}
    plain = load(base, **how).eval()
    torch.manual_seed(0)  # PiSSA's fast decomposition is random
    before = {name: p.clone() for name, p in plain.named_parameters()}
    model = add_lora(load(base, **how), r=4, dropout=0.0, target_modules=targets, first=FirstWeights(init)).eval()

    # It computes what the base computes, whose weights are untouched; and it holds a large part of them.
    start = (logits(model) - logits(plain)).abs().max()
    assert start < (0.05 if dtype == "bfloat16" else 1e-4)
    for name, parameter in model.get_base_model().named_parameters():
        if name.replace(".base_layer", "") in before:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name
    layer = next(m for m in model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A)
    weight = dequantised_weight(layer.get_base_layer()).float()
    weight = weight.T if arch == "gpt2" else weight
    part = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    if init != "olora":  # peft scales its part once more
        assert torch.linalg.matrix_norm(weight - part, 2) < torch.linalg.matrix_norm(weight, 2) * 0.98
    assert torch.linalg.matrix_rank(part) == 4
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(".start." in name for name in trained)

    # Trained and saved, peft alone opens it on the base as it is: an ordinary adapter of twice the rank.
    moved(model)
    folder = saved(model, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 32, True)
    from peft import PeftModel

    opened = PeftModel.from_pretrained(load(base, **how), str(folder)).eval()
    assert (logits(opened) - logits(model)).abs().max() < (0.1 if dtype == "bfloat16" else 1e-4)
    assert (logits(opened) - logits(plain)).abs().max() > 0.05


def test_rank_stabilised_and_saved_with_the_same_scale(tmp_path: Path, tiny_model_dir: Any) -> None:
    base = tiny_model_dir("llama")
    options = {"r": 4, "dropout": 0.0, "options": LoraOptions(use_rslora=True)}
    model = moved(add_lora(load(base), first=FirstWeights("olora"), **options))
    opened = load_adapter(load(base), str(saved(model, tmp_path / "a"))).eval()
    assert (logits(opened) - logits(model)).abs().max() < 1e-4
    plain = add_lora(load(base), **options)
    assert next(m for m in plain.modules() if hasattr(m, "lora_A")).scaling == {"default": 8.0}


def test_loftq_corrects_what_nf4_changed(tiny_model_dir: Any) -> None:
    base = tiny_model_dir("llama", hidden=64)
    first = FirstWeights("loftq", original=lambda: load(base))
    full, quantised = load(base).eval(), load(base, quantization=True).eval()
    model = add_lora(load(base, quantization=True), r=16, alpha=64, dropout=0.0, first=first).eval()
    off = (logits(quantised) - logits(full)).abs().mean()
    assert (logits(model) - logits(full)).abs().mean() < 0.75 * off


def batch(model: Any, length: int = 40, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def test_eva_takes_the_main_directions_of_the_inputs(tiny_model_dir: Any) -> None:
    base = load(tiny_model_dir("llama", hidden=64)).eval()
    rows = batch(base)
    inputs: list[torch.Tensor] = []
    layer = base.model.layers[1].self_attn.q_proj
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    wanted = logits(base)
    with torch.no_grad():
        base(**rows)
    handle.remove()
    model = add_lora(base, r=4, dropout=0.0, first=FirstWeights("eva", lambda: repeat(rows))).eval()
    assert torch.equal(logits(model), wanted), "B is zero"
    a = model.get_base_model().model.layers[1].self_attn.q_proj.lora_A["default"].weight
    centred = inputs[-1] - inputs[-1].mean(dim=0)
    best = torch.linalg.svd(centred, full_matrices=False)[2][:4]
    kept, most = (centred @ a.T).norm() / a.norm(dim=1).mean(), (centred @ best.T).norm()
    assert kept > 0.95 * most
    config = model.peft_config["default"]
    assert len(config.target_modules) == 7 and not config.rank_pattern and config.eva_config is None


def test_eva_without_enough_data_or_an_end(tiny_model_dir: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model_dir("llama")
    with pytest.raises(SettingsError, match="needs at least --lora_r 8 learned tokens"):
        add_lora(load(base), first=FirstWeights("eva", lambda: repeat(batch(load(base), length=3))))

    monkeypatch.setattr(first_weights, "_MOST_BATCHES", 2)
    with pytest.raises(SettingsError, match=r"have not settled after \d+ batches"):
        add_lora(load(base), first=FirstWeights("eva", lambda: (batch(load(base), seed=i) for i in count())))


@pytest.mark.parametrize(
    ("init", "more", "message"),
    [
        ("pissa", {"r": 20}, "--lora_r of at most 16, the size of model.layers.0.self_attn.k_proj, not 20"),
        ("olora", {"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens is none"),
        ("eva", {"r": 64}, "--lora_r of at most 32"),
    ],
)
def test_a_start_that_a_layer_cannot_have(init: str, more: Any, message: str, tiny_model_dir: Any) -> None:
    with pytest.raises(SettingsError, match=message):
        add_lora(load(tiny_model_dir("llama")), first=FirstWeights(init), **more)


# ---- whole modules and single rows ----


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_rows_of_the_named_tokens_change(tied: bool, tmp_path: Path, tiny_model_dir: Any) -> None:
    base = tiny_model_dir("llama", tied=tied, dtype="bfloat16")
    model = add_lora(load(base), options=LoraOptions(trainable_tokens=(7, 5)))
    rows = [p for name, p in model.named_parameters() if "trainable_tokens" in name]
    assert {p.dtype for p in rows} == {torch.float32} and [p.shape for p in rows] == [(2, 32)] * (1 if tied else 2)
    moved(model)
    plain = load(base)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        changed = (getattr(model, get)().weight != getattr(plain, get)().weight).any(dim=1)
        assert changed.nonzero().flatten().tolist() == [5, 7], get
    again = load_adapter(load(base), str(saved(model, tmp_path / "a")), trainable=True)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("tied", [False, True])
def test_whole_modules_train_in_float32_and_stay_tied(tied: bool, tmp_path: Path, tiny_model_dir: Any) -> None:
    base = tiny_model_dir("llama", tied=tied, dtype="bfloat16")
    names = ("lm_head", "layers.0.input_layernorm")
    model = add_lora(load(base), options=LoraOptions(modules_to_save=names), gradient_checkpointing=True)
    whole = {name: p for name, p in model.named_parameters() if "modules_to_save" in name}
    assert len(whole) == 2 and {p.dtype for p in whole.values()} == {torch.float32}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    ids = torch.randint(100, (1, 8))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in whole.values())
    moved(model)
    folder = saved(model, tmp_path / "a")
    again = load_adapter(load(base), str(folder), trainable=True)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(logits(again.eval()), logits(model))


@pytest.mark.parametrize(
    ("options", "how", "message"),
    [
        ({"modules_to_save": ("lm_haed",)}, {}, r"matches no module of LlamaForCausalLM.*Did you mean lm_head\?"),
        ({"modules_to_save": ("layers",)}, {}, "model.layers has no weights of its own to train"),
        ({"modules_to_save": ("act_fn",)}, {}, "act_fn has no weights"),
        ({"modules_to_save": ("mlp", "up_proj")}, {}, "up_proj is a part of model.layers.0.mlp"),
        (
            {"modules_to_save": ("o_proj",)},
            {"quantization": True},
            "bitsandbytes keeps model.layers.0.self_attn.o_proj",
        ),
        (
            {"modules_to_save": ("self_attn",)},
            {},
            "You may also have only targeted modules that are marked to be saved",
        ),
        (
            {"trainable_tokens": (3,), "modules_to_save": ("lm_head",)},
            {},
            "rows of lm_head, and --lora_modules_to_save",
        ),
        ({"trainable_tokens": (3, 10**6)}, {}, "none for id 1000000: add tokens with"),
        ({"layers": (0, 2)}, {}, "there is no layer 2: this model has the layers 0 to 1"),
    ],
)
def test_what_the_model_does_not_have(options: Any, how: Any, message: str, tiny_model_dir: Any) -> None:
    base = load(tiny_model_dir("llama", hidden=64), **how)
    with pytest.raises(SettingsError, match=message):
        add_lora(base, target_modules="q_proj", options=LoraOptions(**options))


def test_trained_rows_and_an_adapter_on_the_same_matrix(tiny_model_dir: Any) -> None:
    with pytest.raises(SettingsError, match="rows of model.embed_tokens, and --lora_target_modules names it as well"):
        add_lora(
            load(tiny_model_dir("llama", hidden=64)),
            target_modules=["q_proj", "embed_tokens"],
            options=LoraOptions(trainable_tokens=(3,)),
        )


def test_what_peft_cannot_do_is_said(tiny_model_dir: Any) -> None:
    biased = tiny_model_dir("phi", hidden=64)  # its output matrix has a bias
    with pytest.raises(SettingsError, match="peft cannot train single rows of lm_head, a Linear with a bias"):
        add_lora(load(biased), target_modules="q_proj", options=LoraOptions(trainable_tokens=(5,)))
    from peft import LoraConfig, get_peft_model

    untied = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.raises(SettingsError, match="peft does not keep this model's embedding and output matrix tied"):
        check_tied(get_peft_model(load(tiny_model_dir("llama", tied=True)), untied), True)


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_tied_matrices_of_other_names_stay_tied(name: str, tmp_path: Path, tiny_model_dir: Any) -> None:
    base = tiny_model_dir("gpt2", tied=True, hidden=64)
    options = LoraOptions(modules_to_save=(name,))
    model = moved(add_lora(load(base), target_modules="c_attn", dropout=0.0, options=options))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    opened = load_adapter(load(base), str(saved(model, tmp_path / "a")), trainable=True).eval()
    assert (logits(opened) - logits(model)).abs().max() < 1e-4
    assert opened.get_input_embeddings().weight is opened.get_output_embeddings().weight


def test_layers_in_a_whole_module_have_no_adapter(tmp_path: Path, tiny_model_dir: Any) -> None:
    base = tiny_model_dir("llama")
    model = moved(add_lora(load(base), options=LoraOptions(modules_to_save=("layers.1.mlp",)), dropout=0.0))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(adapted) == 11 and not any("layers.1.mlp" in name for name in adapted)
    opened = load_adapter(load(base), str(saved(model, tmp_path / "a"))).eval()
    assert (logits(opened) - logits(model)).abs().max() < 1e-5


def test_only_the_chosen_layers_are_adapted(tiny_model_dir: Any) -> None:
    model = add_lora(load(tiny_model_dir("llama")), options=LoraOptions(layers=(1,)))
    adapted = {name.split(".layers.")[1][0] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == {"1"}


# ---- continuing ----


@pytest.mark.parametrize(
    ("options", "first", "said"),
    [
        (LoraOptions(use_rslora=True, use_dora=True), "default", "use_rslora, use_dora"),
        (LoraOptions(), "pissa", "r 8, alpha 16"),
        (LoraOptions(modules_to_save=("embed_tokens",)), "default", "trained whole model.embed_tokens"),
        (LoraOptions(trainable_tokens=(5,)), "default", "trained rows of lm_head, model.embed_tokens"),
        (LoraOptions(layers=(1,)), "default", "r 4"),
    ],
)
def test_continuing(
    options: LoraOptions, first: str, said: str, tmp_path: Path, tiny_model_dir: Any, capsys: Any
) -> None:
    base = tiny_model_dir("llama", dtype="bfloat16")
    folder, trained = save_random_adapter(tmp_path / "a", base, options=options, first=FirstWeights(first))
    capsys.readouterr()
    again = add_lora(load(base), weight_path=str(folder), dropout=0.0, options=LoraOptions(use_rslora=True))
    err = capsys.readouterr().err
    assert said in err
    assert ("use_rslora True -> False" in err) != options.use_rslora
    assert (logits(again.eval()) - logits(trained)).abs().max() < 0.2
    assert all(p.dtype == torch.float32 for p in again.parameters() if p.requires_grad)


def test_an_adapter_of_peft_s_for_a_changed_base_is_not_continued(tmp_path: Path, tiny_model_dir: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model_dir("llama")
    config = LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"])
    get_peft_model(load(base), config).save_pretrained(str(tmp_path))
    with pytest.raises(SettingsError, match="path_initial_model_for_weight_conversion"):
        add_lora(load(base), weight_path=str(tmp_path))
