"""Code from a data set gets its result out, and nothing else in or out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastchat.data.tools import sandbox
from fastchat.data.tools.sandbox import Limits, guarantee, protections, run_python

QUICK = Limits(timeout=1.0)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(1 + 1)", "2\n"),
        ("price = 11\ncount = 9\nprice * count - 7 * 7", "50\n"),  # the documents' example: no print
        ("print('a')\n'b'", "a\n'b'\n"),
        ("x = 3", ""),
        ("None", ""),
        ("print('é 日本')", "é 日本\n"),
        ("import math, fractions, itertools, datetime, decimal, random, re, json\nmath.sqrt(16)", "4.0\n"),
        ("import numpy\nint(numpy.arange(4).sum())", "6\n"),
        ("import os\nprint(os.listdir('.'), sorted(os.environ)[:1])", "[] ['HOME']\n"),
        ("import threading\nt = threading.Thread(target=print, args=('t',))\nt.start(); t.join()", "t\n"),
        ("print('done')\nexit()", "done\n"),
        ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nf(20)", "2432902008176640000\n"),
    ],
)
def test_what_code_prints(code, output):
    if "threading" in code and os.getuid() != 0:
        pytest.skip("threads count as processes for all but root")
    outcome = run_python(code)
    assert (outcome.status, outcome.error) == ("ok", "") and outcome.output == output


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(", "SyntaxError"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("exit(3)", "SystemExit: 3"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import fastchat", "ModuleNotFoundError"),
        ("import encoder, formats", "ModuleNotFoundError"),  # this project's modules, in the child's own folder
        ("x = bytearray(1 << 31)", "MemoryError"),
        ("import os\nos._exit(7)", "ended with 7"),
    ],
)
def test_code_that_fails(code, error):
    outcome = run_python(f"print('before')\n{code}")
    assert outcome.status == "error" and error in outcome.error
    assert outcome.output in ("before\n", "")


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import os\nos.system('true')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "open('here.txt', 'w')",
        "import os\nos.open('here.txt', os.O_CREAT | os.O_RDWR)",
        "import os\nos.mkdir('here')",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "import os\nos.listdir('/')",
        "import os\nos.kill(os.getppid(), 9)",
        "import ctypes\nctypes.CDLL(None).getpid()",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    ],
)
def test_what_code_may_not(code):
    outcome = run_python(code, Limits(timeout=20))
    assert outcome.status == "error", outcome
    assert "PermissionError" in outcome.error or "OSError" in outcome.error or "URLError" in outcome.error, outcome


def test_time_limit():
    start = time.monotonic()
    for code in ("while True: pass", "import time; time.sleep(60)", "import os; os.close(1); os.close(2)\nwhile 1: 0"):
        assert run_python(code, QUICK).status == "timeout"
    assert time.monotonic() - start < 50, "none of them took its minute"


def test_output_limit():
    outcome = run_python("while True: print('x' * 1000)", Limits(timeout=20, output=5000))
    assert outcome.status == "output" and len(outcome.output) == 5000
    assert run_python("import sys\nwhile True: sys.stderr.write('x' * 999)", Limits(20)).status == "output"


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    for code in ("1", "while True: pass", "1 / 0"):
        run_python(code, QUICK)
    assert not list(tmp_path.iterdir())


def test_secrets_of_the_environment_stay_outside(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in run_python("import os\nprint(os.environ)").output


def test_several_threads_at_a_time():
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: run_python(f"{i} * 2").output})) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: f"{2 * i}\n" for i in range(6)}


def test_the_guarantee_says_what_holds(monkeypatch):
    assert set(protections()) <= {"files", "calls"}
    for kernel, said in (
        (("files", "calls"), "the kernel blocks network, processes and files"),
        (("calls",), "network and processes (seccomp), only the interpreter"),
        ((), "not for malicious code"),
    ):
        monkeypatch.setattr(sandbox, "protections", lambda kernel=kernel: kernel)
        assert said in guarantee()


def test_a_protection_that_is_lost_stops_everything(monkeypatch):
    from fastchat.errors import ResourceError

    monkeypatch.setattr(sandbox, "protections", lambda: ("something that no kernel has",))
    with pytest.raises(ResourceError, match="a protection of the sandbox that was available"):
        run_python("1")


# What the kernel refuses by itself, without the audit hook: the child's own functions, then the attempt.
_KERNEL = """
import os, runpy, sys
sys.path.insert(0, "")
child = runpy.run_path({path!r})
assert child["confine_files"](["/lib", "/usr/lib"]) if {files} else True
assert child["filter_calls"]() if {calls} else True
try:
    {attempt}
except OSError as problem:
    print(type(problem).__name__)
else:
    print("allowed")
"""


@pytest.mark.parametrize(
    ("layer", "attempt"),
    [
        ("calls", "import socket; socket.socket()"),
        ("calls", "import socket; socket.socketpair()"),
        ("calls", "os.fork()"),
        ("calls", "os.execv('/bin/true', ['true'])"),
        ("calls", "os.kill(os.getppid(), 0)"),
        ("calls", "os.chmod('secret', 0o777)"),
        ("calls", "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)"),
        ("files", "open('secret').read()"),
        ("files", "open('new', 'w')"),
        ("files", "os.remove('secret')"),
        ("files", "os.listdir('/etc')"),
        ("files", "open(f'/proc/{os.getppid()}/environ').read()"),
    ],
)
def test_the_kernel_refuses_too(tmp_path, layer, attempt):
    if layer not in protections():
        pytest.skip(f"this kernel has no {layer}")
    (tmp_path / "secret").write_text("secret")
    child = str(Path(sandbox.__file__).with_name("sandbox_child.py"))
    code = _KERNEL.format(path=child, attempt=attempt, files=layer == "files", calls=layer == "calls")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout in ("PermissionError\n", "OSError\n"), done
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_the_kernel_leaves_ordinary_work_alone(tmp_path):
    if set(protections()) != {"files", "calls"}:
        pytest.skip("this kernel lacks one of them")
    child = str(Path(sandbox.__file__).with_name("sandbox_child.py"))
    attempt = "import threading; t = threading.Thread(target=str); t.start(); t.join(); os.getrandom(4)"
    code = _KERNEL.format(path=child, attempt=attempt, files=False, calls=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "allowed\n", done
