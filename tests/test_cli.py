"""The `fastchat` command: its table, the launcher it chooses, completion, recipes, and the doctor."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastchat import cli, completion, doctor, launch
from fastchat.errors import EXIT_RESOURCE, EXIT_SETTINGS, ResourceError, SettingsError
from fastchat.settings import recipes
from fastchat.settings.recipe_files import RECIPES, read_recipe
from tests.test_structure import REPOSITORY

COMMANDS = {**cli.COMMANDS, **{f"data {name}": entry for name, entry in cli.DATA_COMMANDS.items()}}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "data"])
def test_every_command_exists_and_takes_words(name: str) -> None:
    main = import_module(COMMANDS[name].module).main
    assert next(iter(inspect.signature(main).parameters)) == "argv"


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0 and cli.main(["data"]) == 0
    printed = capfd.readouterr().out
    assert all(entry.help in printed for entry in COMMANDS.values())


def _run(words: list[str]) -> int:
    try:
        return cli.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "data"])
def test_help_has_one_form_with_examples_first(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = name.split()
    printed = []
    # help comes before the command, or is one of its flags
    for asked in ([*words, "--help"], [*words[:-1], "help", words[-1]]):
        assert _run(asked) == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1]
    lines = printed[0].splitlines()
    assert re.fullmatch(f"usage: fastchat {name}( .*)?", lines[0])
    examples = [*lines[lines.index("Examples:") + 1 :], ""]
    assert examples[0].startswith("  ") and f"fastchat {name}" in "\n".join(examples[: examples.index("")])
    assert max(map(len, lines)) <= 190 and not printed[0].endswith("\n\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "get_stats"], "did you mean stats"),
        (["data", "convert_alpaca"], "did you mean from-alpaca"),
        (["apply_lora"], "did you mean merge"),
        (["verify"], "FOLDER missing; usage: fastchat verify FOLDER"),
        (["merge"], "--lora-path and --target-model-path missing; usage: fastchat merge"),
        (["doctor", "me"], "doctor takes no arguments but --hosts, not 'me'"),
        (["completion"], "the name of the shell is missing"),
        (["completion", "fsh"], "no script for 'fsh'"),
        (["plan"], "error: no model"),
        (["recipes", "copy"], "the name of a recipe is missing"),
        (["recipes", "copy", "phi-4-lora"], "the name of the new file is missing: fastchat recipes copy phi-4-lora my"),
        (["recipes", "copy", "phi-4-lora", "a", "b"], "'b' is too much"),
        (["recipes", "shw"], "did you mean show"),
        (["recipes", "phi-4-lora"], "to see it: fastchat recipes show phi-4-lora"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(words) == EXIT_SETTINGS
    said = capfd.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_an_unknown_command_is_refused_with_the_nearest_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preveiw"]) == EXIT_SETTINGS
    assert "did you mean preview" in capfd.readouterr().err


def test_a_command_gets_its_words_and_returns_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "stats", "--in-fil", "x"])
    assert ended.value.code == EXIT_SETTINGS
    assert "--in-file" in capfd.readouterr().err


def test_help_needs_no_heavy_library() -> None:
    """Of every command, as `fastchat ...` and as `python -m ...`, and its completion."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.all_help"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert run.returncode == 0, run.stderr
    found, imported = json.loads(run.stdout)
    assert imported == [] and len(found) > 90
    for name, code, out, err in found:
        if name.startswith("completion "):
            assert isinstance(code, list) and (out, err) == ("", ""), (name, code)
        elif code == EXIT_SETTINGS:
            assert re.fullmatch(r"error: \S+ of FastChat \S+ does not exist here: .+\n", err), (name, err)
        else:
            assert code == 0 and err == "", (name, code, err)
            no_usage = ("fastchat recipes", "python -m fastchat.settings.reference")
            assert out.startswith("usage: ") or name in no_usage, (name, out)


# --- recipes


def test_recipes_are_listed_with_what_they_train(capfd: pytest.CaptureFixture[str]) -> None:
    assert recipes.main([]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_a_recipe_is_copied_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "my.yaml"
    assert recipes.main(["copy", "qwen2.5-7b-lora", str(mine)]) == 0
    assert read_recipe(mine) == read_recipe(RECIPES / "qwen2.5-7b-lora.yaml")
    assert f"fastchat train {mine} " in mine.read_text()
    mine.write_text("mine")
    for words in (["copy", "qwen2.5-7b-lora", str(mine)], ["copy", "qwen2.5-7b-lora", str(tmp_path)], ["copy", "x"]):
        assert recipes.main(words) == EXIT_SETTINGS
    assert recipes.main(["copy", "qwen2.5-7b-lora", str(tmp_path / "no" / "my.yaml")]) == EXIT_SETTINGS
    assert recipes.main(["show", "quen2.5-7b-lora"]) == EXIT_SETTINGS
    assert mine.read_text() == "mine" and "did you mean qwen2.5-7b-lora" in capfd.readouterr().err


# --- launcher


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes nvidia-smi list so many GPUs."""
    for name in ("RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def have(number: int) -> None:
        program = tmp_path / "nvidia-smi"
        rows = "".join(f"echo 'NVIDIA H100, 81559, GPU-{i}'\n" for i in range(number))
        program.write_text(f"#!/bin/sh\n{rows}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return have


def _words(*words: str) -> list[str]:
    return launch.choose(words).words


def test_one_gpu_or_none_is_one_process(gpus) -> None:  # noqa: ANN001
    for number in (0, 1):
        gpus(number)
        assert _words("--data_path", "x") == [sys.executable, "-m", "fastchat.train.train_lora", "--data_path", "x"]


def test_several_gpus_take_torchrun_or_with_a_configuration_deepspeed(gpus) -> None:  # noqa: ANN001
    gpus(8)
    expected = ["torchrun", "--standalone", "--nproc_per_node", "8", "-m", "fastchat.train.train_lora"]
    assert _words("--data_path", "x")[:6] == expected
    words = _words("llama-2-7b-lora", "--num_processes", "2")  # the recipe names a DeepSpeed configuration
    assert words[:5] == ["deepspeed", "--log_level", "error", "--num_gpus", "2"] and words[5].endswith(
        "fastchat/train/train_lora.py"
    )
    assert words[6:] == ["llama-2-7b-lora"]


def test_gpus_chosen_by_the_user_stay_chosen_under_deepspeed(gpus, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    gpus(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6")
    made = launch.choose(["llama-2-7b-lora", "--num_processes", "2"])
    assert made.words[:5] == ["deepspeed", "--log_level", "error", "--include", "localhost:2,5"]
    assert made.environment == {"CUDA_VISIBLE_DEVICES": None}


def test_processes_on_the_cpu(gpus) -> None:  # noqa: ANN001
    gpus(0)
    made = launch.choose(["llama-2-7b-lora", "--num_processes", "2", "--use_cpu", "True"])
    assert (
        made.words[:5] == ["deepspeed", "--log_level", "error", "--num_gpus", "2"]
        and made.environment["DS_ACCELERATOR"] == "cpu"
    )
    assert _words("--num_processes", "2")[0] == "torchrun"


def test_a_recipe_without_lora_settings_is_a_full_fine_tuning(gpus) -> None:  # noqa: ANN001
    gpus(0)
    assert "fastchat.train.train" in _words("gemma-2b-it")
    assert "fastchat.train.train_lora" in _words("gemma-2b-it", "--lora_r", "8")
    assert "fastchat.train.train_lora" in _words("gemma-2b-it", "--full_finetuning", "False")
    assert "fastchat.train.train" in _words("--full_finetuning", "--data_path", "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "mpirun"], "auto, deepspeed, torchrun, python"),
        (["--num_processes", "0"], "at least 1"),
        (["--num_processes", "3"], "only 2 GPUs are visible"),
        (["--num_processes", "2", "--launcher", "python"], "needs --launcher"),
        (["--launcher"], "needs a value"),
        (["llama-2-7b-lra"], "did you mean"),
    ],
)
def test_what_cannot_be_launched_is_refused(gpus, words: list[str], message: str) -> None:  # noqa: ANN001
    gpus(2)
    with pytest.raises(SettingsError, match=re.escape(message)):
        launch.choose(words)


def test_a_launcher_that_is_not_installed_is_named(gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    gpus(2)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="torchrun is not installed"):
        launch.choose([])


def test_the_plan_starts_no_launcher(gpus) -> None:  # noqa: ANN001
    gpus(8)
    assert _words("qwen2.5-7b-lora", "--plan")[0] == sys.executable


def test_train_runs_the_training_command_and_says_how(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fastchat.cli", "train", "--no_such_setting", "1", "--output_dir", str(tmp_path / "o")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == EXIT_SETTINGS, run.stderr
    assert f"running: {sys.executable} -m fastchat.train.train_lora --no_such_setting 1" in run.stderr
    assert "no_such_setting" in run.stderr.splitlines()[-1]


# --- completion


def test_completion_offers_commands_recipes_settings_and_values() -> None:
    assert completion.candidates([""]) == list(cli.COMMANDS)
    assert completion.candidates(["data", "split"]) == ["split", "split-long"]
    assert completion.candidates(["train", "qwen2"]) == ["qwen2.5-7b-lora"]
    assert "--lora_alpha" in completion.candidates(["train", "x.yaml", "--lora"])
    assert completion.candidates(["train", "x.yaml", "--bf16", ""]) == ["True", "False"]
    assert completion.candidates(["recipes", "copy", "llama-2-7b"]) == ["llama-2-7b-lora"]
    assert completion.candidates(["nothing", ""]) == []
    assert completion.candidates(["train", "--launcher", "tor"]) == ["torchrun"]
    assert completion.candidates(["chat", "--load"]) == ["--load-8bit", "--load-4bit"]
    assert completion.candidates(["chat", "--device", ""]) == ["cpu", "cuda"]
    assert completion.candidates(["data", "split", "--on-bad-row", ""]) == ["stop", "skip"]


@pytest.mark.parametrize(
    "words",
    [[n] for n in cli.COMMANDS if n not in ("data", "train", "preview", "plan")]
    + [["data", n] for n in cli.DATA_COMMANDS],
)
def test_completion_offers_the_flags_of_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """From its own parser, without running it; a command that has no flags offers none. (Those of settings: above.)"""
    found = completion.candidates([*words, "--"])
    assert capsys.readouterr() == ("", "") and all(flag.startswith("--") for flag in found)
    with contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    shown = capsys.readouterr().out
    assert set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", shown, re.M)) <= {*found, "--help"}


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_completion_scripts_are_valid(shell: str, tmp_path: Path) -> None:
    import shutil

    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(completion.SCRIPTS[shell])
    assert subprocess.run([shell, "-n", str(script)], capture_output=True).returncode == 0


def test_completion_works_in_bash(tmp_path: Path) -> None:
    program = tmp_path / "fastchat"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m fastchat.cli "$@"\n')
    program.chmod(0o755)
    lines = f"""PATH={tmp_path}:$PATH; eval "$(fastchat completion bash)"
    COMP_WORDS=(fastchat train --lora_al); COMP_CWORD=2; _fastchat; echo "${{COMPREPLY[@]}}" """
    run = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "--lora_alpha"


# --- doctor


def test_the_doctor_finds_what_training_needs(capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert all(re.match(r"(ok|note|MISSING) ", line) for line in lines)
    for name in ("Python", "torch", "deepspeed", "GPU", "C++ compiler", "disk here", "hub login"):
        assert any(line[9:].startswith(name) for line in lines), name


def test_the_doctor_names_what_is_missing_and_the_way_out(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", {"torch": "99.0", "no-such-distribution": "1.0"})
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor.main([]) == EXIT_RESOURCE
    printed = capfd.readouterr().out
    assert re.search(r"MISSING  torch .*99.0 or newer is needed", printed)
    assert "pip install 'no-such-distribution>=1.0'" in printed


def test_the_doctor_survives_every_broken_installation(tmp_path: Path) -> None:
    """Libraries that raise anything when they are imported, or end the process; no compiler; a home that is unknown."""
    fakes = {
        "torch": "raise OSError('libcudart.so.12: cannot open shared object file')",
        "transformers": "import no_such_module",
        "deepspeed": "import os; os._exit(134)",
        "peft": "class Odd(BaseException): pass\nraise Odd",
        "accelerate": "import sys; print('[]'); sys.exit(3)",
        "datasets": "def broken(:",
        **dict.fromkeys(("tokenizers", "bitsandbytes", "safetensors"), ""),
    }
    for name, text in fakes.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    settings = {"PYTHONPATH": path, "PATH": str(empty), "HOME": str(tmp_path), "HF_HOME": "~nobody-here/hub"}
    words = [sys.executable, "-m", "fastchat.doctor"]
    done = subprocess.run(words, env=settings, cwd=empty, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == EXIT_RESOURCE and done.stderr == ""
    lines = {line[9:].split(" ")[0]: line for line in done.stdout.splitlines()}
    assert all(re.match(r"(ok|note|MISSING) ", line) for line in done.stdout.splitlines())
    told = {"torch": "libcudart", "transformers": "no_such_module", "deepspeed": "exit code 134", "peft": "Odd"}
    for name, reason in {**told, "accelerate": "SystemExit", "datasets": "SyntaxError"}.items():
        assert lines[name].startswith("MISSING") and reason in lines[name] and "pip install" in lines[name]
    assert all(lines[name].startswith("ok") for name in ("tokenizers", "bitsandbytes", "safetensors"))
    assert "apt install g++" in lines["C++"] and "disk here" in done.stdout
    assert "cannot be checked" in lines["hub"] and "home directory" in lines["disk"]


def test_the_doctor_tells_a_full_disk(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor._disk,))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert doctor.main([]) == 0
    assert re.search(r"note +disk here +0 GiB free in .*: .*free some space", capfd.readouterr().out)


def test_the_doctor_wants_what_the_project_wants() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for name, oldest in doctor._NEEDED.items():
        assert f'"{name}>={oldest}"' in project


def test_the_doctor_shows_no_secret(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value")
    doctor.main([])
    assert "hf_very_secret_value" not in capfd.readouterr().out
