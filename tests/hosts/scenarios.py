"""What can go wrong between two hosts, played on two namespaces: `SCENARIOS`, and `play` for one of them.

python -m playground.hosts_table out.md        the table of all, with times and exit codes
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests import builders
from tests.hosts.two_hosts import NAMES, TwoHosts, address

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = ("ddp", "zero2", "zero3")
RENDEZVOUS = ("c10d", "static", "hostfile")
PORT = 29400
PATIENCE_S = 900
SETTLED_S = 40.0  # after which a launcher has started its ranks, or starts them no more
SAVES = ("--save_strategy", "steps", "--save_steps", "5")
LONG = ("--max_steps", "4000", *SAVES)
LOCAL, OUT = "{local}", "{out}"  # the folder that is another one on each host; the output folder on a shared one


@dataclass(frozen=True)
class Scenario:
    """A fault, and how the run has to end.

    flags: on both hosts, after the usual ones; on_b: on host b. prepare(folder of b): what is different there.
    happens: during training. code: of every rank, None for whatever the launcher makes of it. says: words on each host.
    """

    name: str
    code: int | None
    says: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    on_b: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    happens: str = ""
    same_name: bool = False
    restarts: int = 0


@dataclass
class Played:
    """What became of a run: by host what the launcher returned (None: it still waited for the other host), what was
    printed, and the seconds from the fault (or the start) to the end; the exit codes of the ranks that the launcher
    names; what is in `status.json`."""

    returned: dict[str, int | None]
    seconds: dict[str, float]
    logs: dict[str, str]
    codes: list[int]
    status: dict[str, object]
    output: Path


def _other_tokenizer(local: Path) -> None:
    """Two tokens change places."""
    path = local / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))


def _other_row(local: Path) -> None:
    rows = json.loads((local / "data.json").read_text())
    rows[3]["conversations"][1]["value"] += " Exactly."
    (local / "data.json").write_text(json.dumps(rows))


def _other_weights(local: Path) -> None:
    shutil.rmtree(local / "model")
    builders.make_model(local / "model", seed=1)


def _without_data(local: Path) -> None:
    (local / "data.json").unlink()


UNSHARED = ("--output_dir", f"{LOCAL}/out")
DIFFER = "the hosts of this run differ: "
SCENARIOS = (
    Scenario("nothing", 0, {"a": "saved and verified"}),
    Scenario("both hosts have the same name", 0, {"a": "saved and verified"}, same_name=True),
    Scenario(
        "other settings on b",
        2,
        dict.fromkeys(NAMES, f"{DIFFER}--learning_rate is 5e-05 on host-a (rank 0) and 0.01 on host-b (rank 1); --m"),
        on_b=("--learning_rate", "1e-2", "--max_steps", "9"),
    ),
    Scenario("another tokenizer on b", 2, dict.fromkeys(NAMES, f"{DIFFER}the tokenizer is"), prepare=_other_tokenizer),
    Scenario("other base weights on b", 2, dict.fromkeys(NAMES, "the base model's weights is"), prepare=_other_weights),
    Scenario(
        "other data on b",
        3,
        dict.fromkeys(NAMES, "the train data is not the same on every machine: "),
        prepare=_other_row,
    ),
    Scenario(
        "no data on b",
        3,
        {"a": "data.json: no such file", "b": "data.json: no such file"},
        prepare=_without_data,
    ),
    Scenario(
        "output folder not shared",
        2,
        dict.fromkeys(NAMES, "is not shared: host-b (rank 1) cannot write where host-a (rank 0) does"),
        flags=(*UNSHARED, *SAVES),
    ),
    Scenario("output folder not shared, no checkpoints", 0, {"a": "saved and verified"}, flags=UNSHARED),
    Scenario("rank 1 is asked to stop", 75, {"a": "is saved; the same command resumes"}, flags=LONG, happens="term"),
    Scenario(
        "rank 1 is killed", 6, {"a": "rank 1 on host-b (process "}, flags=LONG, happens="kill"
    ),
    Scenario(
        "the cable is cut",
        6,
        {"a": "went silent: host-b has not answered", "b": "went silent: host-a has not answered"},
        flags=LONG,
        happens="cut",
    ),
    Scenario(
        "rank 1 is killed, --max_restarts 1",
        0,
        {"a": "resuming from "},
        flags=("--max_steps", "200", "--save_strategy", "steps", "--save_steps", "5"),
        happens="kill",
        restarts=1,
    ),
)  # fmt: skip
HOSTFILE = (
    Scenario(
        "Ctrl-C at deepspeed --hostfile",
        None,
        {"a": "is saved; the same command resumes"},
        flags=LONG,
        happens="int launcher",
    ),
    Scenario("SIGTERM to deepspeed --hostfile", None, flags=LONG, happens="term launcher"),
)


def prepare_material(folder: Path) -> Path:
    """A tiny model and data, in `folder`, to be copied to each host."""
    builders.make_model(folder / "model")
    builders.write_rows(
        folder / "data.json", [row for rounds in (1, 2, 3) for row in builders.chat_rows(9, rounds)][:20]
    )
    return folder


def play(scenario: Scenario, engine: str, rendezvous: str, material: Path, folder: Path) -> Played:
    """Runs a scenario in `folder`, to its end."""
    output = folder / "out"
    with TwoHosts(folder / "hosts", same_name=scenario.same_name) as hosts:
        for host in NAMES:
            shutil.copytree(material, hosts.local(host), dirs_exist_ok=True)
        if scenario.prepare is not None:
            scenario.prepare(hosts.local("b"))
        words = {host: _words(scenario, host, engine, hosts.folder, output) for host in NAMES}
        began, running = time.monotonic(), _start(scenario, rendezvous, hosts, words, folder)
        if scenario.happens:
            _wait_for_steps(output, running)
            began = time.monotonic()
            _happen(scenario.happens, hosts, folder)
        seconds = _wait_for_end(running, folder, began)
        if scenario.flags[:2] == UNSHARED:
            output = hosts.local("a") / "out"
    logs = {host: (folder / f"log_{host}").read_text(errors="replace") for host in running}
    codes = [int(code) for log in logs.values() for code in re.findall(r"exitcode\s*: (-?\d+) ", log)]
    status = json.loads((output / "status.json").read_text()) if (output / "status.json").exists() else {}
    return Played({host: process.poll() for host, process in running.items()}, seconds, logs, codes, status, output)


def _words(scenario: Scenario, host: str, engine: str, folder: Path, output: Path) -> list[str]:
    """The flags of one host."""
    local = str(folder / "local")
    words = ["--model_name_or_path", f"{local}/model", "--data_path", f"{local}/data.json", "--output_dir", str(output)]
    words += ["--use_cpu", "True", "--max_steps", "6", "--per_device_train_batch_size", "1", "--logging_steps", "1"]
    words += ["--run_report", "none", "--sample_prompts", "0", "--disable_tqdm", "True", "--save_strategy", "no"]
    if engine.startswith("zero"):
        config = folder / f"{engine}.json"
        config.write_text(
            json.dumps({"zero_optimization": {"stage": int(engine[-1])}, "zero_allow_untested_optimizer": True})
        )
        words += ["--deepspeed", str(config)]
    words += [*scenario.flags, *(scenario.on_b if host == "b" else ())]
    return [word.replace(LOCAL, local).replace(OUT, str(output)) for word in words]


def _start(
    scenario: Scenario, rendezvous: str, hosts: TwoHosts, words: dict[str, list[str]], folder: Path
) -> dict[str, subprocess.Popen[bytes]]:
    """The launchers, by host; with a hostfile there is one, on host a."""
    bin = str(Path(sys.executable).parent)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{bin}:{os.environ['PATH']}", "FSCHAT_CACHE": str(hosts.folder / "local" / "cache")}
    environment |= {"DS_ACCELERATOR": "cpu"}
    started = {}
    for host in NAMES if rendezvous != "hostfile" else ("a",):
        if rendezvous == "hostfile":
            hosts.serve_ssh()
            (folder / "hostfile").write_text("".join(f"{hosts.names[name]} slots=1\n" for name in NAMES))
            head = [f"{bin}/deepspeed", "--hostfile", str(folder / "hostfile"), "--num_nodes", "2", "--num_gpus", "1"]
            head += ["--master_addr", address("a"), "--master_port", str(PORT)]
            head += [str(REPOSITORY / "fastchat" / "train" / "train_lora.py")]
        else:
            head = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
            if rendezvous == "static":
                head += [
                    "--node_rank",
                    str(NAMES.index(host)),
                    "--master_addr",
                    address("a"),
                    "--master_port",
                    str(PORT),
                ]
            else:
                head += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{address('a')}:{PORT}", "--rdzv_id", "x"]
                head += ["--local_addr", address(host), "--max_restarts", str(scenario.restarts)]
            head += ["-m", "fastchat.train.train_lora"]
        with open(folder / f"log_{host}", "w") as log:
            started[host] = hosts.start(host, [*head, *words[host]], log, env=environment, cwd=REPOSITORY)
    return started


def _wait_for_steps(output: Path, running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Until a checkpoint is there."""
    until = time.monotonic() + PATIENCE_S
    while not any(output.glob("checkpoint-*")):
        assert time.monotonic() < until and all(process.poll() is None for process in running.values()), "no step"
        time.sleep(0.2)


def _happen(what: str, hosts: TwoHosts, folder: Path) -> None:
    kind, _, whom = what.partition(" ")
    if kind == "cut":
        hosts.cut()
        return
    number = {"term": signal.SIGTERM, "kill": signal.SIGKILL, "int": signal.SIGINT}[kind]
    for process in _launchers(folder) if whom else _ranks(folder, "1"):
        os.kill(process, number)


def _ranks(folder: Path, rank: str = "") -> list[int]:
    """The ranks of the run in `folder`, as they are seen from outside; or one of them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace")
            variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        ours = f"{folder}/" in words and "train_lora" in words and "torch.distributed.run" not in words
        if ours and any(v.startswith("RANK=") and (not rank or v == f"RANK={rank}") for v in variables):
            found.append(int(path.name))
    return found


def _launchers(folder: Path) -> list[int]:
    """The `deepspeed` that was started, and the pdsh under it: what the Ctrl-C of a terminal reaches."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"{folder}/hostfile" in words and words[0] != "nsenter" and "env" not in words[:1]:
            found.append(int(path.name))
        if words[0].endswith("pdsh") and str(folder) in " ".join(words):
            found.append(int(path.name))
    return found


def _wait_for_end(running: dict[str, subprocess.Popen[bytes]], folder: Path, began: float) -> dict[str, float]:
    """By host, the seconds until its launcher had ended; or its rank, if the launcher waits on for the other host."""
    seconds: dict[str, float] = {}
    gone: dict[str, float] = {}
    while len(seconds) < len(running) or _ranks(folder):
        now = time.monotonic()
        assert now - began < PATIENCE_S, "the run does not end"
        for host, process in running.items():
            ranks = _ranks(folder, str(NAMES.index(host)))
            gone = {name: at for name, at in gone.items() if name != host or not ranks}
            if not ranks and now - began > SETTLED_S:
                gone.setdefault(host, now)
            over = process.poll() is not None or now - gone.get(host, now) > SETTLED_S
            if over and host not in seconds:
                seconds[host] = round(gone.get(host, now) - began, 1)
        time.sleep(0.3)
    return seconds
