"""Checkpointing of some layers, compiled layers, liger and named attention kernels: equal to the plain path, or off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastchat.model import liger
from fastchat.model.decoder_layers import CompiledLayers, checkpoint_first, checkpointed_layers, decoder_layers
from fastchat.model.lora import add_lora
from fastchat.train import speed
from tests.train.flags import Train, adapter, covers, ok

SHORT = ("--lora_dropout", "0", "--lora_target_modules", "q_proj", "v_proj")


@covers("gradient_checkpointing")
def test_some_checkpointed_layers_change_no_loss(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ok(train("--packing", "True"))
    layers = len(decoder_layers(plain.trainer.model))
    assert layers > 1 and plain.record["checkpointed_layers"] == 0
    for value, number in (("1", 1), ("full", layers), ("auto", 0)):
        outcome = ok(train("--packing", "True", "--gradient_checkpointing", value, name=value))
        assert outcome.losses == plain.losses, "bit for bit, with the same dropout"
        assert outcome.record["checkpointed_layers"] == number
        on = [layer.gradient_checkpointing for layer in decoder_layers(outcome.trainer.model)]
        assert on == [index < number for index in range(layers)]
    assert outcome.record["settings"]["gradient_checkpointing"] == {"value": False, "from": "derived"}
    assert "--gradient_checkpointing auto: off, because the run fits without" in outcome.err


def test_values_of_gradient_checkpointing(train: Train) -> None:
    refused = train("--gradient_checkpointing", "99")
    assert refused.code == 2 and "this model has 2 decoder layers; full means all of them" in refused.err
    refused = train("--gradient_checkpointing", "fulll")
    assert refused.code == 2 and "did you mean full?" in refused.err
    refused = train("--gradient_checkpointing", "1", "--gradient_checkpointing_kwargs", '{"every_n_layers": 2}')
    assert refused.code == 2 and "keep one" in refused.err


@covers("attn_implementation", "use_liger_kernel")
def test_what_is_proven_and_what_is_not_there(train: Train) -> None:
    plain = ok(train())
    outcome = ok(train("--attn_implementation", "eager", "--use_liger_kernel", name="b"))
    assert outcome.record["attention"] == "eager" and outcome.losses == pytest.approx(plain.losses, abs=1e-6)
    off = "its Triton kernels need a GPU"
    assert outcome.record["speed"] == {"attn_implementation": "on", "use_liger_kernel": f"off: {off}"}
    assert f"--use_liger_kernel is off: {off}" in outcome.err and "--attn_implementation: on " in outcome.log
    assert "attention eager, use_liger_kernel off" in outcome.err
    lacking = ok(train("--attn_implementation", "flash_attention_2", name="c"))
    assert lacking.record["attention"] == "sdpa" and "--attn_implementation flash_attention_2: it needs" in lacking.err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("flash_attention2", "did you mean flash_attention_2?"),
        ("kernels-comunity/flash-attn3", "did you mean kernels-community/flash-attn3?"),
        ("someone/kernel", "would run code from the hub"),
        ("a/b/c", "is owner/name"),
        ("paged|eager", "it can be eager"),
    ],
)
def test_unknown_kernels_are_refused(train: Train, value: str, said: str) -> None:
    refused = train("--attn_implementation", value)
    assert refused.code == 2 and said in refused.err


def test_two_settings_for_one_kernel_are_refused(train: Train) -> None:
    refused = train("--attn_implementation", "sdpa", "--flash_attn", "True")
    assert refused.code == 2 and "both choose the attention kernel; keep one" in refused.err


def test_a_wrong_kernel_is_found_and_left_off(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes something else, and one that raises."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def wrong(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value * 1.01, *args, **kwargs)

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel for this width")

    plain = ok(train(*SHORT))
    for kernel, said in ((wrong, "not right for this model: "), (failing, "RuntimeError: no kernel for this width")):
        monkeypatch.setitem(AttentionInterface._global_mapping, "of_tests", kernel)
        outcome = ok(train(*SHORT, "--attn_implementation", "of_tests", name=kernel.__name__))
        assert f"WARNING: --attn_implementation is off: {said}" in outcome.err
        assert outcome.record["attention"] == "sdpa" and outcome.losses == plain.losses
        assert outcome.record["speed"]["attn_implementation"].startswith("off: ")


class Louder:
    """A change that is wrong: the output of the first layer's MLP grows."""

    def __init__(self, model: Any) -> None:
        self.layer: Any = decoder_layers(model)[0]

    def apply(self) -> None:
        self.handle = self.layer.mlp.register_forward_hook(lambda module, inputs, output: output * 1.5)

    def undo(self) -> None:
        self.handle.remove()


def test_a_wrong_change_is_found_where_weights_are_divided(model_dir: Path, tmp_path: Path) -> None:
    """autograd knows no gradient of the weights that FSDP divides, which was taken for one that is right."""
    from transformers import AutoModelForCausalLM

    from fastchat.settings.engines import FsdpOptions
    from fastchat.train.engine import choose_engine

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        engine = choose_engine(None, 1, FsdpOptions())
        engine.divide(model, torch.device("cpu"))
        ids = torch.arange(5, 17)[None]
        batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
        way = speed._Way(torch.float32, False, engine)
        assert "not right for this model" in speed._prove(model, "wrong", Louder(model), batch, way)
        nothing = Louder(model)
        nothing.apply = lambda: None  # type: ignore[method-assign]
        assert speed._prove(model, "right", nothing, batch, way) == ""
        assert all(p.grad is None for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


# ---- compiled layers; the graphs are only traced here, as compiling them for the CPU takes half a minute ----


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that are made in a test."""
    made: list[Any] = []

    def backend(graph: Any, inputs: Any, **options: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(CompiledLayers.__init__, "__defaults__", (backend,))
    yield made
    torch._dynamo.reset()


@covers("torch_compile")
def test_one_graph_for_all_layers(train: Train, graphs: list[Any]) -> None:
    """Padded batches of many lengths, one of two layers checkpointed, dropout: the same run, from one graph."""
    plain = ok(train("--max_steps", "4"))
    assert not graphs
    flags = ("--max_steps", "4", "--torch_compile", "--gradient_checkpointing", "1", "--save_strategy", "steps")
    outcome = ok(train(*flags, "--save_steps", "2", name="b"))
    assert len(graphs) == 1 and outcome.record["speed"] == {"torch_compile": "on"}
    assert outcome.losses == pytest.approx(plain.losses, abs=1e-6)
    for folder in (outcome.folder, outcome.folder / "checkpoint-2"):
        assert adapter(folder).keys() == adapter(plain.folder).keys(), "no other names"
    again = ok(train("--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", name="b"))
    assert again.metrics[-1]["step"] == 6 and "now used: --torch_compile true -> false" in again.err


def test_packed_rows_are_compiled_too(train: Train, graphs: list[Any]) -> None:
    plain = ok(train("--packing", "True", "--model_max_length", "400"))
    outcome = ok(
        train("--packing", "True", "--model_max_length", "400", "--torch_compile", "--verify_packing", name="b")
    )
    assert len(graphs) <= 2, "rows of one pack are another shape, layers are not"
    assert outcome.losses == pytest.approx(plain.losses, abs=1e-6)


def test_a_layer_that_cannot_be_compiled_runs_as_it_is(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise ValueError("no such instruction")

    torch._dynamo.reset()
    monkeypatch.setattr(CompiledLayers.__init__, "__defaults__", (backend,))
    outcome = ok(train("--torch_compile"))
    assert outcome.err.count("WARNING: --torch_compile") == 1 and "no such instruction" in outcome.err
    assert outcome.record["speed"]["torch_compile"].startswith("off: BackendCompilerFailed")
    torch._dynamo.reset()


def test_without_a_compiler_it_is_off(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    outcome = ok(train("--torch_compile"))
    assert "--torch_compile is off: it needs a C++ compiler" in outcome.err


@pytest.mark.thorough
@pytest.mark.parametrize("quantized", [False, True])
def test_compiled_for_this_machine(train: Train, quantized: bool) -> None:
    """torch's own compiler; it keeps dropout as it is."""
    plain = ok(train("--q_lora", str(quantized)))
    outcome = ok(train("--q_lora", str(quantized), "--torch_compile", name="b"))
    assert outcome.record["speed"] == {"torch_compile": "on"}
    assert outcome.losses == pytest.approx(plain.losses, abs=1e-5)


# ---- liger: its kernels need a GPU, so only the way back is shown here


def test_what_liger_replaces_can_be_put_back(tiny_model_dir: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    change = liger.LigerKernels(model)
    before, own = modeling_llama.apply_rotary_pos_emb, dict(vars(model.model.norm))
    change._remember()
    modeling_llama.apply_rotary_pos_emb = None  # pyright: ignore
    model.model.norm.forward = lambda hidden: hidden
    change.undo()
    assert modeling_llama.apply_rotary_pos_emb is before and vars(model.model.norm) == own


# ---- the parts


def test_only_layers_of_the_decoder_are_meant(tiny_model_dir: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    for family in ("llama", "gpt_neox", "mixtral"):
        model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_model_dir(family)), gradient_checkpointing=True)
        layers = decoder_layers(model)
        assert len(layers) == model.config.num_hidden_layers == checkpointed_layers(model)
        checkpoint_first(model, 1)
        assert checkpointed_layers(model) == 1
