"""train_multinode.sh, and Slurm, Kubernetes and SkyPilot, which start it on each host: torchrun gets the same words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastchat.settings.options import split_recipe
from fastchat.settings.readers import training_reader
from fastchat.settings.recipe_files import find_recipe
from tests.builders import chat_rows, write_rows
from tests.machine import free_port
from tests.scripts.conftest import Run

TRAIN = ["qwen3-8b-lora", "--data_path", "/shared/chats.jsonl", "--output_dir", "/shared/out"]
SMI = "#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo GPU $i: x; done\n"
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done
"""

Start = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Start:
    """`start(words, variables)`: runs a command in a checkout without .venv on a "machine" with 8 GPUs, where torchrun
    prints its words; returns {"interface": ..., "launcher": its flags, "words": the rest} of every start."""
    root, tools = tmp_path / "checkout", tmp_path / "tools"
    shutil.copytree(repository / "scripts", root / "scripts")
    tools.mkdir()
    programs = {
        "torchrun": '#!/bin/sh\nprintf "%s\\0" "$NCCL_SOCKET_IFNAME" "$GLOO_SOCKET_IFNAME" "$@"; printf "\\n"\n',
        **{
            "deepspeed": "#!/bin/sh\n",
            "nvidia-smi": SMI,
            "srun": SRUN,
            "scontrol": "#!/bin/sh\necho node-a\necho node-b\n",
        },
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(words: Sequence[str], variables: Mapping[str, str]) -> list[dict[str, Any]]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        environment = kept | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} | dict(variables)
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = []
        for line in done.stdout.splitlines():
            nccl, gloo, *rest = line.split("\0")[:-1]
            assert nccl == gloo
            at = rest.index("-m")
            found.append({"interface": nccl, "launcher": _pairs(rest[:at]), "words": rest[at:]})
        return found

    return run


def _pairs(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _expected(rank: int, **more: str) -> dict[str, str]:
    values = {"nnodes": "2", "nproc_per_node": "8", "max_restarts": "0", "rdzv_backend": "c10d"}
    values |= {"rdzv_endpoint": "node-a:29500", "rdzv_id": "fastchat", "rdzv_conf": f"is_host={str(not rank).lower()}"}
    return {f"--{name}": value for name, value in (values | more).items()}


def test_the_script_itself(start: Start) -> None:
    variables = {"HOSTS": "2", "MASTER_ADDR": "node-a", "INTERFACE": "lo", "MAX_RESTARTS": "3"}
    (found,) = start(["bash", "scripts/train_multinode.sh", *TRAIN], variables)
    expected = _expected(0, max_restarts="3")
    del expected["--rdzv_conf"]  # torchrun finds out whose address it is
    assert found == {"interface": "lo", "launcher": expected, "words": ["-m", "fastchat.launch", *TRAIN]}


def test_slurm(start: Start) -> None:
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node-[a-b]"}
    found = start(["bash", "scripts/slurm/train.sbatch", *TRAIN], variables)
    more = {"rdzv_endpoint": "node-a:22345", "rdzv_id": "12345"}
    assert [one["launcher"] for one in found] == [_expected(rank, **more) for rank in (0, 1)]
    assert all(one["words"] == ["-m", "fastchat.launch", *TRAIN] for one in found)


def test_kubernetes(start: Start, repository: Path) -> None:
    job = yaml.safe_load((repository / "scripts" / "kubernetes" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    for rank, kind in enumerate(("Master", "Worker")):
        (container,) = replicas[kind]["template"]["spec"]["containers"]
        given = {variable["name"]: variable.get("value", "10.0.0.9") for variable in container["env"]}
        assert given.pop("INTERFACE") == "eth0"  # of a pod; perhaps not of this machine
        operator = {"PET_NNODES": "2", "PET_NODE_RANK": str(rank), "MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}
        (found,) = start(container["command"], given | operator | {"RANK": str(rank), "WORLD_SIZE": "16"})
        assert found["launcher"] == _expected(rank, local_addr="10.0.0.9")
        assert found["words"] == ["-m", "fastchat.launch", *TRAIN]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in replicas[kind]["template"]["spec"]["volumes"]}


def test_skypilot(start: Start, repository: Path) -> None:
    task = yaml.safe_load((repository / "scripts" / "skypilot" / "train.yaml").read_text())
    assert task["num_nodes"] == 2
    for rank in (0, 1):
        variables = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "node-a\nnode-b"}
        (found,) = start(["bash", "-c", task["run"]], variables)
        assert found["launcher"] == _expected(rank)
        assert found["words"] == ["-m", "fastchat.launch", *TRAIN]


def test_the_example_is_one_that_training_accepts() -> None:
    recipe, flags = split_recipe(TRAIN)
    assert recipe is not None
    reader = training_reader(True)
    values = reader.from_yaml(find_recipe(recipe)) | reader.from_words(flags)
    assert values["data_path"] == ["/shared/chats.jsonl"] and values["output_dir"] == "/shared/out"


@pytest.mark.parametrize(
    ("variables", "words", "message"),
    [
        ({}, ["my.yaml"], "HOSTS= is not a number of hosts"),
        ({"HOSTS": "2"}, ["my.yaml"], "MASTER_ADDR is not set"),
        ({"HOSTS": "2", "MASTER_ADDR": "a"}, [], "no recipe and no flags"),
        ({"HOSTS": "2", "MASTER_ADDR": "a", "INTERFACE": "no9"}, ["my.yaml"], "INTERFACE=no9 does not exist here ("),
        ({"HOSTS": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, ["my.yaml"], "MASTER_PORT=x is not a number"),
        ({"HOSTS": "2", "MASTER_ADDR": "a", "DEVICE": "tpu"}, ["my.yaml"], "DEVICE=tpu is neither gpu nor cpu"),
    ],
)
def test_what_is_missing_is_said(run_script: Run, variables: dict[str, str], words: list[str], message: str) -> None:
    done = run_script("train_multinode.sh", *words, **{"DEVICE": "cpu", "MASTER_PORT": "29500", **variables})
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.thorough
def test_two_hosts_train(repository: Path, tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    """The real torchrun, twice on this machine, each as one host."""
    model = tiny_model_dir("llama", "metaspace_bos")
    rows = tmp_path / "chats.json"
    write_rows(rows, chat_rows(8))
    words = ["--model_name_or_path", str(model), "--data_path", str(rows), "--output_dir", str(tmp_path / "out")]
    words += [
        "--conv_template",
        "vicuna_v1.1",
        "--max_steps",
        "2",
        "--model_max_length",
        "128",
        "--full_finetuning",
        "False",
    ]
    environment = os.environ | {"HOSTS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"DEVICE": "cpu", "INTERFACE": "lo", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(repository / "scripts" / "train_multinode.sh"), *words]
    processes = [
        subprocess.Popen(
            command, env=environment | {"HOST_RANK": rank}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    for process in processes:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told.decode()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
