"""A primary with two replicas, and the three Sentinels that watch it, for tests to break."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, EmbeddedServer, RedisServer, redis_binary
from tests.support.together import Together, until

SERVICE = "the-primary"
DOWN_AFTER_MS, FAILOVER_TIMEOUT_MS = 1000, 3000
CONFIG = f"""\
sentinel monitor {SERVICE} {LOCALHOST} {{port}} 2
sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}
sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}
"""


class SentinelServer(EmbeddedServer):
    """One Sentinel."""

    name = "Sentinel"

    def __init__(self, primary: RedisServer) -> None:
        super().__init__()
        self._primary = primary

    @property
    def url(self) -> str:
        return f"redis://{LOCALHOST}:{self.port}"

    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        config = directory / "sentinel.conf"
        if not config.exists():  # it writes there what it learns
            config.write_text(f"port {self.port}\nbind {LOCALHOST}\n" + CONFIG.format(port=self._primary.port))
        return self._popen([redis_binary(), config, "--sentinel"], directory)

    def _is_ready(self, process: subprocess.Popen[bytes], directory: Path) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Service(Together):
    """Three servers and three Sentinels. Servers are named by their place; the first one begins as primary."""

    def __init__(self, *arguments: str) -> None:
        self.servers = [RedisServer("--repl-diskless-sync-delay", "0", *arguments) for _ in range(3)]
        self.clients = [redis.Redis(port=server.port, socket_timeout=5) for server in self.servers]
        self.sentinels = [SentinelServer(self.servers[0]) for _ in range(3)]
        self._watchers = [redis.Redis(port=each.port, socket_timeout=5) for each in self.sentinels]

    def start(self) -> None:
        for server in self.servers:
            server.start()
        for client in self.clients[1:]:
            client.replicaof(LOCALHOST, self.servers[0].port)
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_until_well()

    def close(self) -> None:
        for client in (*self._watchers, *self.clients):
            client.close()
        for server in (*self.sentinels, *self.servers):
            server.close()

    @property
    def url(self) -> str:
        """All Sentinels, as `from_conn_string` takes them."""
        addresses = ",".join(f"{LOCALHOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{addresses}/{SERVICE}"

    @property
    def primary(self) -> int:
        """The server that the Sentinels that run agree on, -1 if they do not."""
        ports = {
            int(watcher.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
            for watcher, sentinel in zip(self._watchers, self.sentinels, strict=True)
            if sentinel.pid
        }
        return next(n for n in range(3) if self.servers[n].port in ports) if len(ports) == 1 else -1

    def kill(self) -> int:
        """Lets the primary crash. Returns which one that was."""
        until(lambda: self.primary >= 0)
        primary = self.primary
        self.servers[primary].kill()
        return primary

    def wait_for_new_primary(self, old: int) -> int:
        """The server that has taken the place of `old`."""
        until(lambda: self.primary not in (-1, old) and self._role(self.primary) == "master")
        return self.primary

    def fail_over(self) -> int:
        """Makes the Sentinels choose another primary though this one is well. Returns the new one."""
        until(lambda: self.primary >= 0)
        old = self.primary
        self._watchers[0].execute_command("SENTINEL", "FAILOVER", SERVICE)
        return self.wait_for_new_primary(old)

    @contextmanager
    def left_as_it_is(self, server: int) -> Iterator[None]:
        """For the block, a server cannot be made a replica, however long that takes: as if nobody came to it."""
        set_user = "ACL", "SETUSER", "default"
        self.clients[server].execute_command(*set_user, "-slaveof", "-replicaof")
        try:
            yield
        finally:
            self.clients[server].execute_command(*set_user, "+slaveof", "+replicaof")

    def wait_until_agreed(self) -> None:
        """Waits until a client that asks any of the Sentinels is told the same."""
        until(lambda: len({watcher.sentinel_master(SERVICE)["port"] for watcher in self._watchers}) == 1)

    def restart(self, server: int) -> None:
        """Starts a server again, and waits until all is well."""
        self.servers[server].start()
        self.wait_until_well()

    def wait_until_well(self) -> None:
        """Waits until the Sentinels know all servers and each other, and the replicas are in step."""
        until(self._is_well)

    def _is_well(self) -> bool:
        primary = self.primary
        for watcher, sentinel in zip(self._watchers, self.sentinels, strict=True):
            if sentinel.pid:
                state = watcher.sentinel_master(SERVICE)
                if (state["num-other-sentinels"], state["num-slaves"], state["flags"]) != (2, 2, "master"):
                    return False
                if any(r["flags"] != "slave" for r in watcher.sentinel_slaves(SERVICE)):
                    return False
        return primary >= 0 and sorted(map(self._role, range(3))) == ["master", "slave", "slave"]

    def _role(self, server: int) -> str:
        try:
            info = self.clients[server].info("replication")
        except redis.RedisError:
            return "down"
        return "late" if info.get("master_link_status", "up") != "up" else str(info["role"])
