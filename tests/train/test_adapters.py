"""Every kind of adapter: trained, saved, verified, opened, merged, chatted with, and resumed bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.checkpoint.merge import merge_adapter
from fastchat.checkpoint.prepare import prepare_model
from fastchat.checkpoint.trained_model import find_trained, load_trained
from fastchat.checkpoint.verify import verify
from fastchat.model.loading import load_base_model
from fastchat.serve import cli
from tests.model.adapters import logits
from tests.tiers import thorough
from tests.train.flags import Train, covers, ok

# Four steps with a checkpoint after two; dropout on, so that a resumed run needs its random numbers.
RUN = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-2"]
RUN += ["--lora_dropout", "0.1", "--lora_r", "4", "--logging_steps", "1"]
# name: (kind of base, flags). Options that do not touch each other share a run.
KINDS: dict[str, tuple[str, list[str]]] = {
    "rslora, dora, one layer": ("plain", ["--use_rslora", "1", "--use_dora", "1", "--lora_layers_to_transform", "1"]),
    "dora on nf4": ("plain", ["--use_dora", "1", "--q_lora", "1"]),
    "pissa with rslora": ("plain", ["--lora_init", "pissa", "--use_rslora", "1"]),
    "fast pissa in half precision": ("half", ["--lora_init", "pissa_niter_4", "--lora_bias", "all"]),
    "olora on nf4": ("plain", ["--lora_init", "olora", "--q_lora", "1"]),
    "eva with LoRA+": ("plain", ["--lora_init", "eva", "--loraplus_lr_ratio", "4"]),
    "loftq": ("plain", ["--lora_init", "loftq", "--q_lora", "1", "--lora_r", "16"]),
    "gaussian, whole modules": ("half", ["--lora_init", "gaussian", "--lora_modules_to_save", "embed_tokens,norm"]),
    "a tied head": ("tied", ["--lora_modules_to_save", "lm_head", "--q_lora", "1"]),
    "new tokens": ("new", ["--trainable_tokens", "untrained", "--lora_init", "pissa"]),
    "new tokens of a tied head": ("new tied half", ["--trainable_tokens", "<|im_start|>", "<|im_end|>", "5"]),
}
FURTHER = ("dora on nf4", "fast pissa in half precision", "olora on nf4", "a tied head", "new tokens")


@pytest.fixture(scope="module")
def bases(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def base(kind: str) -> Path:
        words = kind.split()
        dtype = "bfloat16" if "half" in words else "float32"
        made = tiny_model_dir("llama", "byte_bos", tied="tied" in words, dtype=dtype, hidden=64)
        if "new" not in words:
            return made
        out = tmp_path_factory.mktemp("prepared") / "model"
        prepare_model(str(made), str(out), special_tokens=["<|im_start|>", "<|im_end|>"])
        return out

    return base


def flags_of(base: Path, data_files: tuple[Path, Path], *more: str) -> list[str]:
    words = ["--model_name_or_path", str(base), "--data_path", str(data_files[0]), "--conv_template", "chatml"]
    return [*words, "--per_device_train_batch_size", "4", "--disable_tqdm", "True", *RUN, *more]


@pytest.mark.slow
@pytest.mark.parametrize("name", [thorough(name, in_default=name not in FURTHER) for name in KINDS])
@covers("lora_init", "use_rslora", "use_dora", "lora_modules_to_save", "trainable_tokens", "lora_layers_to_transform")
def test_a_whole_life(
    name: str,
    train: Train,
    bases: Callable[[str], Path],
    data_files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, options = KINDS[name]
    base = bases(kind)
    half = "half" in kind
    flags = flags_of(base, data_files, *options)
    done = ok(train(base=flags))
    trained = done.trainer.model.eval()

    # What was saved is what was trained, on the base as it is on disk.
    tuned = find_trained(str(done.folder))
    opened = load_trained(tuned)
    wanted = logits(trained)
    assert verify(done.folder)[1]
    assert (logits(opened) - wanted).abs().max() < (0.06 if half else 1e-4)
    assert (wanted - logits(load_base_model(str(base), for_training=False).eval())).abs().max() > 0.05

    # So is the merged model.
    report = merge_adapter(str(done.folder), str(tmp_path / "merged"))
    merged = load_base_model(str(tmp_path / "merged"), for_training=False).eval()
    assert report.effect > 0.05
    assert (logits(merged) - wanted).abs().max() < (0.15 if half else 2e-3 if "--q_lora" in options else 1e-4)
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == ("tied" in kind)

    # A run that ended after the first checkpoint gives the same bytes.
    again = tmp_path / "again"
    shutil.copytree(done.folder / "checkpoint-2", again / "checkpoint-2")
    resumed = ok(train(base=flags, name="again"))
    assert "checkpoint-2" in resumed.err
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (done.folder / file).read_bytes() == (again / file).read_bytes(), file
    assert resumed.losses[-2:] == done.losses[-2:]

    capsys.readouterr()
    assert cli.main(["--model-path", str(done.folder), "--message", "Hi", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.endswith("\n")


@covers("loraplus_lr_ratio")
def test_the_b_matrices_learn_faster(train: Train) -> None:
    flags = ["--loraplus_lr_ratio", "8", "--learning_rate", "1e-3", "--weight_decay", "0.1", "--warmup_steps", "1"]
    done = ok(train(*flags, "--lora_target_modules", "q_proj", "embed_tokens", "--lora_r", "4", "--max_steps", "3"))
    model, groups = done.trainer.model, done.trainer.optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(i for i, n in names.items() if "lora_" in n)
    for group in groups:
        faster = {".lora_B." in names[id(p)] for p in group["params"]}
        if faster:
            assert faster == {group["initial_lr"] == 8e-3} and group["weight_decay"] == 0.1
            assert group["lr"] == pytest.approx(group["initial_lr"] / 1e-3 * groups[0]["lr"])
    slow = ok(train(*flags[2:], "--lora_target_modules", "q_proj", "embed_tokens", "--lora_r", "4", name="slow"))
    assert len(slow.trainer.optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_init", "pisa"], "--lora_init is 'pisa'; it can be default, gaussian, pissa"),
        (["--lora_init", "loftq"], "add --q_lora True"),
        (["--lora_layers_to_transform", "1", "x"], "'x' is neither the number of a layer nor a range"),
        (["--loraplus_lr_ratio", "0"], "--loraplus_lr_ratio is 0; it must be above 0"),
        (["--trainable_tokens", "<|nowhere|>"], "'<|nowhere|>' is not one token of this tokenizer"),
        (["--trainable_tokens", "99999"], "none for id 99999"),
        (["--trainable_tokens", "untrained"], "the base model has learned all added tokens"),
        (["--lora_modules_to_save", "nothing"], "'nothing' matches no module"),
        (["--lora_init", "pissa", "--lora_r", "64"], "needs a --lora_r of at most 32"),
    ],
)
def test_a_run_that_cannot_be_ends_before_its_first_step(flags: list[str], message: str, train: Train) -> None:
    done = train(*flags)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err, done.err


def test_what_zero3_cannot_is_said_before_the_model_loads(train: Train) -> None:
    for flags in (["--trainable_tokens", "5"], ["--use_dora", "1", "--q_lora", "1"]):
        done = train(*flags, "--deepspeed", '{"zero_optimization": {"stage": 3}}')
        assert done.code == 2 and "peft" in done.err and "ZeRO-2" in done.err, done.err
