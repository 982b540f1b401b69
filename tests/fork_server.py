"""Processes of `python -m fastdb` forked from a server that has imported torch, diffusers and transformers.

A small training takes one second of CPU time and the imports of its process take seven. Tests therefore start the
command line, notebook kernels and trainers through `ForkedPopen`, in the place of `subprocess.Popen`: the process is a
child of a server that has done the imports, and like the real process in its arguments, environment, folder, streams,
session, process group, signals and exit code. A trainer that such a process starts is forked as well.

Real processes are started for all other commands (publishers too, which watch their parent and share its process
group), where the environment would change what is imported, for tests with the fixture `real_processes`, and everywhere
with `--real-processes`, as `make test-full` does.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import inspect
import json
import os
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from fastdb.runtime.isolation import is_allowed

RealPopen = subprocess.Popen
REPOSITORY = Path(__file__).resolve().parents[1]

PROGRAMS = {"fastdb", "fastdb.training", "ipykernel_launcher"}
PRELOADED = (
    "fastdb.cli",
    "fastdb.inference.engine",
    "fastdb.training.__main__",
    "fastdb.training.trainer",
    "fastdb.training.stage_run",
)
IMPORTS_DEPEND_ON = ("HF_", "LANG", "LC_", "LD_", "PYTHON", "TORCH", "TRANSFORMERS_")
"""Beginnings of the names of environment variables with which another interpreter would be started."""

_NAMES = tuple(inspect.signature(RealPopen._execute_child).parameters)  # type: ignore[attr-defined]
_INT = struct.Struct("i")
_SIZE = struct.Struct("I")


def usable() -> bool:
    """Return whether this system has what the server needs."""
    return importlib.util.find_spec("torch") is not None and hasattr(os, "pidfd_open") and hasattr(socket, "send_fds")


class ForkedPopen(RealPopen[Any]):
    """A `subprocess.Popen` whose process the server forks, if it is one of `PROGRAMS`."""

    server: Server | None = None
    _status: socket.socket | None = None

    def _execute_child(self, *arguments: Any) -> None:
        given = dict(zip(_NAMES, (self, *arguments), strict=True))
        environment = dict(os.environ if given["env"] is None else given["env"])
        if self.server is None or not _is_program(given) or not self.server.fits(environment):
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        request = {
            "arguments": [os.fspath(word) for word in given["args"]],
            "environment": environment,
            "folder": os.fspath(given["cwd"] or os.getcwd()),
            "new_session": given["start_new_session"],
            "parent": os.getpid(),
            "group": os.getpgid(0),
        }
        streams = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        self._status = self.server.ask(request, streams)
        (self.pid,) = _INT.unpack(self._status.recv(_INT.size, socket.MSG_WAITALL))
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _NAMES if name in _PIPES))  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(flags)  # type: ignore[misc]
        if flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        data = self._status.recv(_INT.size, socket.MSG_WAITALL)
        self._status.close()
        # Without an answer the server is gone, and with it whoever could know.
        return self.pid, _INT.unpack(data)[0] if data else 0

    def _internal_poll(self, *arguments: Any, **named: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*arguments, **named)  # type: ignore[misc]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                process, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if process:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


_PIPES = {"p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"}


def _is_program(given: dict[str, Any]) -> bool:
    """Whether a command is one of `PROGRAMS`, and started in a way that a fork can imitate."""
    words = [given["args"]] if isinstance(given["args"], str | bytes | os.PathLike) else list(given["args"])
    if words[:1] != [sys.executable] or words[1:2] not in (["-m"], ["-P"]):
        return False
    others = [given[name] for name in ("executable", "preexec_fn", "pass_fds", "shell")]
    return _program(words) in PROGRAMS and not any(others)


def _program(words: list[str]) -> str:
    rest = words[2:] if words[1] == "-P" else words[1:]
    return rest[1] if rest[:1] == ["-m"] and len(rest) > 1 else ""


class Server:
    """Where the server listens, and the environment that it was started with."""

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        isolated = {name: value for name, value in environment.items() if is_allowed(name)}
        self.address, self._fitting = address, (_relevant(environment), _relevant(isolated))

    def fits(self, environment: dict[str, str]) -> bool:
        """Return whether a process of this environment, or an isolated one, would have imported the same."""
        return _relevant(environment) in self._fitting

    def ask(self, request: dict[str, Any], streams: list[int]) -> socket.socket:
        """Ask for a process; the socket gives its number and, when it has ended, its status."""
        data = json.dumps(request).encode("utf-8", "surrogateescape")
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        socket.send_fds(connection, [_SIZE.pack(len(data))], streams)
        connection.sendall(data)
        return connection


class LazyServer(Server):
    """A server that is started when it is first asked, and ends with the process that started it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder / "fork-server"), dict(os.environ))
        self._log, self._process = folder / "fork-server.log", None
        self._starting = threading.Lock()

    def ask(self, request: dict[str, Any], streams: list[int]) -> socket.socket:
        """Ask for a process, after starting the server where nobody has done so."""
        with self._starting:
            if self._process is None:
                self._start()
        return super().ask(request, streams)

    def _start(self) -> None:
        self._alive, theirs = socket.socketpair()
        with theirs, self._log.open("w") as log:
            self._process = RealPopen(
                [sys.executable, "-P", __file__, self.address, str(theirs.fileno())],
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        if not self._alive.recv(1):
            raise RuntimeError(f"the fork server ended: {self._log.read_text()}")

    def close(self) -> None:
        """End the server, and wait for it so that its CPU time counts."""
        if self._process is not None:
            self._alive.close()
            self._process.wait()


@contextmanager
def forked_processes(folder: Path) -> Iterator[None]:
    """Let `ForkedPopen` fork `PROGRAMS`; the socket of the server lies in `folder`."""
    with closing(LazyServer(folder)) as server:
        ForkedPopen.server = server
        try:
            yield
        finally:
            ForkedPopen.server = None


def _relevant(environment: dict[str, str]) -> dict[str, object]:
    """Return the variables that imports depend on; folders that only lead to this package do not count."""
    relevant: dict[str, object] = {
        name: value
        for name, value in environment.items()
        if name.startswith(IMPORTS_DEPEND_ON) and name != "PYTHONUNBUFFERED"
    }
    folders = [folder for folder in str(relevant.pop("PYTHONPATH", "")).split(os.pathsep) if folder]
    if others := [folder for folder in folders if (Path(folder) / "fastdb").resolve() != REPOSITORY / "fastdb"]:
        relevant["PYTHONPATH"] = others
    return relevant


# The server's process.


def serve(address: str, alive: socket.socket) -> None:
    """Fork a process for each connection until `alive` is closed at its other end."""
    from fastdb.runtime.library_settings import prepare_libraries

    for name in PRELOADED:
        importlib.import_module(name)
    prepare_libraries()
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise RuntimeError(f"a fork would lose {len(threads) - 1} threads that the imports have started")
    ForkedPopen.server = Server(address, dict(os.environ))
    subprocess.Popen = ForkedPopen  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    listener, children = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(address)
    listener.listen(64)
    children.register(listener, selectors.EVENT_READ)
    children.register(alive, selectors.EVENT_READ)
    alive.send(b"1")
    while True:
        for key, _ in children.select():
            if key.fileobj is alive:
                return
            if key.fileobj is listener:
                _accept(listener, children)
            else:
                _reap(key, children)


def _accept(listener: socket.socket, children: selectors.BaseSelector) -> None:
    connection, _ = listener.accept()
    with connection:
        head, streams, _, _ = socket.recv_fds(connection, _SIZE.size, 3)
        if len(head) < _SIZE.size:
            return
        (length,) = _SIZE.unpack(head)
        request = json.loads(connection.recv(length, socket.MSG_WAITALL).decode("utf-8", "surrogateescape"))
        process = os.fork()
        if process == 0:
            for key in list(children.get_map().values()):
                key.fileobj.close() if isinstance(key.fileobj, socket.socket) else os.close(key.fileobj)  # type: ignore
                if key.data is not None:
                    key.data[1].close()
            children.close()
            _become(request, streams, connection)
        for stream in streams:
            os.close(stream)
        children.register(os.pidfd_open(process), selectors.EVENT_READ, (process, connection.dup()))


def _reap(key: selectors.SelectorKey, children: selectors.BaseSelector) -> None:
    process, connection = key.data
    status = os.waitpid(process, 0)[1]
    children.unregister(key.fileobj)
    os.close(key.fd)
    with connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(_INT.pack(status))


def _become(request: dict[str, Any], streams: list[int], connection: socket.socket) -> None:
    """Be the process that was asked for, to its end."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["new_session"]:
        os.setsid()
    else:
        with suppress(PermissionError, ProcessLookupError):  # in another session: its own children would be alone
            os.setpgid(0, request["group"])
    os.chdir(request["folder"])
    # Not before: whoever starts a process may ask for its group at once, and send a signal to all of it.
    connection.sendall(_INT.pack(os.getpid()))
    connection.close()
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent = os.pidfd_open(request["parent"])
    os.getppid = lambda: 1 if select.select([parent], [], [], 0)[0] else request["parent"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or "PYTHONUNBUFFERED" in os.environ or stream.isatty())
    words = request["arguments"]
    program, own = _program(words), words[words.index("-m") + 2 :]
    if "-P" not in words[:2]:
        sys.path.insert(0, request["folder"])
    sys.argv = [program, *own]
    code = 0
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if not isinstance(end.code, int | None):
            sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody catches
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    # The class that children use is the one of this module, whatever its name.
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
