"""The program that `sandbox.py` starts to run one piece of code: it drops its permissions, then runs the code.

Not for importing: it is started by path in a bare interpreter, without this project. It reads (limits, code) from stdin
and exits with 0, 1 (the code raised; the last line on stderr says what) or 70 (a protection that was available before
is not any more). It is started once per piece of code, so it imports only what loads fast (`_ast`, not `ast`).
"""
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false

import sys

sys.path.pop(0)  # this folder: the code must not import its modules

import _ast
import _signal
import errno
import marshal
import os
import resource
from _struct import pack

PROTECTION_LOST = 70
# System calls that fail with "not permitted", as (x86-64, arm64 and other generic tables).
_REFUSED = {
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "chroot": (161, 51), "pivot_root": (155, 41),
    "truncate": (76, 45), "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "fchmod": (91, 52),
    "chown": (92, None), "lchown": (94, None), "fchownat": (260, 54), "fchown": (93, 55),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "mknod": (133, None), "mknodat": (259, 33), "open_by_handle_at": (304, 265),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
# These fail with "no such call", so that the C library falls back to a call that can be checked.
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}
_CLONE, _PRLIMIT = (56, 220), (302, 261)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH
_THREAD = 0x10000  # CLONE_THREAD: a thread, not a process
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22

# Audit events that are blocked: the same rules for systems whose kernel has no filter.
_REFUSED_EVENTS = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "os.startfile", "os.kill", "os.killpg", "signal.pthread_kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
    "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.lchown", "os.chflags", "os.utime",
    "os.setxattr", "os.removexattr", "shutil.", "tempfile.", "resource.setrlimit", "resource.prlimit", "pty.spawn",
    "ctypes.dlopen", "ctypes.dlsym", "ctypes.addressof", "ctypes.call_function", "ctypes.cdata", "ctypes.string_at",
    "webbrowser.", "urllib.", "http.", "ftplib.", "smtplib.", "poplib.", "imaplib.", "nntplib.", "telnetlib.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main():
    """Reads (limits, code) from stdin, drops permissions, and runs the code."""
    limits, code = marshal.load(sys.stdin.buffer)
    for folder in limits["packages"]:
        sys.path.append(folder)
    limit_resources(limits)
    kernel = [
        name for name, applied in (("files", confine_files(limits["readable"])), ("calls", filter_calls())) if applied
    ]
    if limits["probe"]:
        print(" ".join(kernel))
        return 0
    if not set(limits["kernel"]) <= set(kernel):
        return PROTECTION_LOST
    sys.addaudithook(refuse_events(tuple(limits["readable"])))
    return run(code)


def run(code):
    """Runs the code like a notebook cell: the value of the last line is printed too."""
    names = {"__name__": "__main__", "__builtins__": __builtins__, "exit": sys.exit, "quit": sys.exit}
    try:
        tree = compile(code, "<code>", "exec", _ast.PyCF_ONLY_AST)
        last = _ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), names)
        value = eval(compile(last, "<code>", "eval"), names) if last else None
        if value is not None:
            print(repr(value))
        sys.stdout.flush()
    except SystemExit as end:
        sys.stdout.flush()
        if end.code:
            print(f"SystemExit: {end.code}", file=sys.stderr)
        return 1 if end.code else 0
    except BaseException as problem:  # noqa: BLE001 - whatever the code raises is its result
        text = " ".join(str(problem).split())
        print(f"{type(problem).__name__}: {text}" if text else type(problem).__name__, file=sys.stderr)
        return 1
    return 0


# ---- dropping permissions, irreversibly ----


def limit_resources(limits):
    """Limits memory, processor time, file size, core dumps and, unless the user is root, processes."""
    seconds, memory = limits["timeout"], limits["memory"]
    _signal.setitimer(_signal.ITIMER_REAL, seconds + 1)  # ends this process if its parent has died
    _limit(resource.RLIMIT_CPU, int(seconds) + 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_NPROC, 0)


def _limit(kind, value):
    try:  # noqa: SIM105 - contextlib starts slowly
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS knows some of these only by name
        pass


def confine_files(readable):
    """Landlock: nothing can be written, and only `readable` can be read. False if the kernel does not support it."""
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).syscall
    except (ImportError, OSError, AttributeError):
        return False
    if sys.platform != "linux" or call(444, None, ctypes.c_size_t(0), 1) < 1:
        return False
    everything, reading = (1 << 13) - 1, 1 | 4 | 8  # execute, read a file, list a folder
    handled = pack("Q", everything)
    rules = call(444, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    for path in readable:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = reading if os.path.isdir(path) else reading & ~8
        call(445, rules, 1, pack("=Qi", allowed, handle), 0)
        os.close(handle)
    done = _no_new_privileges(ctypes) and call(446, rules, 0) == 0
    os.close(rules)
    return done


def filter_calls():
    """seccomp: no sockets, processes, signals to others or tracing. False if the kernel does not support it."""
    machine = _MACHINES.get(os.uname().machine)
    if sys.platform != "linux" or machine is None:
        return False
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    instructions = b"".join(_program(*machine))
    program = Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    return _no_new_privileges(ctypes) and libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def _program(column, architecture):
    """The filter's instructions (BPF): load a word, compare and jump, return."""
    permit, kill = 0x7FFF0000, 0x80000000
    refuse, absent = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS

    def word(offset):  # of struct seccomp_data: 0 number, 4 architecture, 16 + 8 i argument i
        return pack("HBBI", 0x20, 0, 0, offset)

    def unless(value, skip, test=0x15):  # 0x15 equal, 0x35 at least, 0x45 any bit set: else skip instructions
        return pack("HBBI", test, 0, skip, value)

    def answer(value):
        return pack("HBBI", 0x06, 0, 0, value)

    yield from (word(4), pack("HBBI", 0x15, 1, 0, architecture), answer(kill), word(0))
    if column == 0:  # numbers of the x32 interface would pass the table
        yield from (unless(0x40000000, 1, 0x35), answer(kill))
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            yield from (unless(numbers[column], 1), answer(refuse))
    for numbers in _ABSENT.values():
        yield from (unless(numbers[column], 1), answer(absent))
    yield from (unless(_CLONE[column], 4), word(16), unless(_THREAD, 1, 0x45), answer(permit), answer(refuse))
    # Limits of other processes: only with 0, this process, as the first argument.
    yield from (unless(_PRLIMIT[column], 4), word(16), unless(0, 1), answer(permit), answer(refuse))
    yield answer(permit)


def _no_new_privileges(ctypes):
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


def refuse_events(readable):
    """An audit hook. It stops ordinary code, not code that breaks out of the interpreter."""

    def inside(path):
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        path = os.path.realpath(path)
        return any(path == root or path.startswith(root.rstrip("/") + "/") for root in readable)

    def hook(event, arguments):
        """Raises PermissionError, in the program, for an event that is not allowed; see sys.addaudithook."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            if flags & _WRITING or not inside(path):
                raise PermissionError(f"opening {path!r} is not allowed here")
        elif event in ("os.listdir", "os.scandir"):
            if not isinstance(arguments[0], int) and not inside(arguments[0] or "."):
                raise PermissionError(f"listing {arguments[0]!r} is not allowed here")
        elif event.startswith(_REFUSED_EVENTS) and not (event == "ctypes.dlopen" and arguments == (None,)):
            raise PermissionError(f"{event} is not allowed here")

    return hook


if __name__ == "__main__":
    code = main()
    for stream in (sys.__stdout__, sys.__stderr__):
        try:  # noqa: SIM105
            stream.flush()
        except OSError:  # the code closed it
            pass
    os._exit(code)  # so that nothing that the code has registered runs at exit
