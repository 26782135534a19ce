"""A Redis Cluster of six nodes, three of them primaries, for tests to break and reshape."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import redis

from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, EmbeddedServerError, RedisServer
from tests.support.together import Together, until

PRIMARIES, NODES, SLOTS = 3, 6, 16384
NODE_TIMEOUT_MS = 2000  # on a busy machine a shorter one has them fail over by themselves


class Cluster(Together):
    """Six servers. Each third of the slots has a primary and a replica. Nodes are named by their place.

    Args:
        arguments: of each redis-server.
    """

    def __init__(self, *arguments: str) -> None:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
        options += ["--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"]
        # A replica that is a little behind may be elected too: coherence is not to hang on its being up to date.
        options += ["--cluster-replica-validity-factor", "0", *arguments]
        self.servers = [RedisServer(*options) for _ in range(NODES)]
        self.clients = [redis.Redis(port=server.port, socket_timeout=5) for server in self.servers]

    def start(self) -> None:
        for server in self.servers:
            server.start()
        self._join()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.close()

    @property
    def url(self) -> str:
        """All nodes, as `from_conn_string` takes them."""
        return "redis+cluster://" + ",".join(f"{LOCALHOST}:{server.port}" for server in self.servers)

    @property
    def primaries(self) -> list[int]:
        """Those that run and say they are primaries with slots."""
        return [node for node in range(NODES) if self.servers[node].pid and self._says(node, "master", slots=True)]

    def primary_of(self, key: str) -> int:
        """The node that holds a key's slot, once all that run agree."""
        until(lambda: len(self._owners(key)) == 1)
        (owner,) = self._owners(key)
        assert owner is not None
        return owner

    def slot_of(self, key: str) -> int:
        """As a node says."""
        return int(self.clients[self._running()[0]].execute_command("CLUSTER", "KEYSLOT", key))

    def replica_of(self, node: int) -> int:
        """A replica of a primary that runs."""
        me = self._id(node)
        for other in range(NODES):
            if self.servers[other].pid and other != node:
                flags, of = self._myself(other)[2:4]
                if "slave" in flags and of == me:
                    return other
        raise AssertionError(f"node {node} has no replica")

    def kill(self, node: int) -> None:
        """Lets a node crash."""
        self.servers[node].kill()

    def freeze(self, node: int) -> Callable[[], None]:
        """Stops a node without closing its connections; returns what lets it go on."""
        pid = self.servers[node].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    def restart(self, node: int) -> None:
        """Starts a node again and waits until all is well."""
        self.servers[node].start()
        self.wait_until_well()

    def fail_over(self, node: int) -> int:
        """Makes a replica take a primary's place in the orderly way. Returns the new primary when all know it."""
        self.wait_until_well()
        replica = self.replica_of(node)
        self.clients[replica].execute_command("CLUSTER", "FAILOVER")
        until(lambda: replica in self.primaries)
        self.wait_until_well()
        return replica

    def wait_for_new_primary(self, old: int, key: str) -> int:
        """The node that all that run know to have taken over a key's slot from `old`."""
        until(lambda: len(self._owners(key) - {old}) == 1 and old not in self._owners(key))
        (owner,) = self._owners(key)
        assert owner is not None
        return owner

    def begin_to_move(self, slot: int, source: int, target: int) -> None:
        """Opens a slot at both ends."""
        until(lambda: {source, target} <= set(self._primaries_seen_by(source)) & set(self.primaries))
        self.clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, source: int, target: int, count: int = 1000) -> list[bytes]:
        """Moves some keys of an open slot, one at a time."""
        keys: list[bytes] = self.clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
        for key in keys:
            self.clients[source].execute_command(
                "MIGRATE", LOCALHOST, self.servers[target].port, key, 0, 5000, "REPLACE"
            )
        return keys

    def end_move(self, slot: int, source: int, target: int) -> None:
        """Moves what is left and closes the slot, at the target first."""
        while self.move_keys(slot, source, target):
            pass
        for node in (target, source, *self.primaries):
            self.clients[node].execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def wait_until_well(self) -> None:
        """Waits until all nodes that run agree on who is there and what, and each replica is in step."""
        until(self._is_well)

    def _join(self) -> None:
        addresses = [f"{LOCALHOST}:{server.port}" for server in self.servers]
        if shutil.which("redis-cli") is None:
            raise EmbeddedServerError("No redis-cli found: apt install redis-tools")
        command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.wait_until_well()

    def _is_well(self) -> bool:
        running = self._running()
        for node in running:
            info = self.clients[node].execute_command("CLUSTER", "INFO").decode()
            if "cluster_state:ok" not in info or f"cluster_known_nodes:{NODES}" not in info:
                return False
            lines = [line.split() for line in self._nodes(node)]
            up = [line for line in lines if "fail" not in line[2] and "handshake" not in line[2]]
            if len(up) < len(running):
                return False
            replication: Any = self.clients[node].info("replication")
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return False
        seen = {frozenset(line.split()[0] for line in self._nodes(node) if "master" in line) for node in running}
        return len(seen) == 1 and len(self.primaries) == len(*seen) == PRIMARIES

    def _running(self) -> list[int]:
        return [node for node in range(NODES) if self.servers[node].pid]

    def primary_seen_by(self, node: int, key: str) -> int | None:
        """Whom a node takes for the primary of a key's slot."""
        slot = int(self.clients[node].execute_command("CLUSTER", "KEYSLOT", key))
        for start, end, primary, *_ in self.clients[node].execute_command("CLUSTER", "SLOTS"):
            if start <= slot <= end:
                return self._at(int(primary[1]))
        return None

    def _primaries_seen_by(self, node: int) -> list[int]:
        ports = [
            line.split()[1].partition("@")[0].rpartition(":")[2] for line in self._nodes(node) if "master" in line
        ]
        return [self._at(int(port)) for port in ports]

    def _owners(self, key: str) -> set[int | None]:
        return {self.primary_seen_by(node, key) for node in self._running()}

    def _says(self, node: int, flag: str, *, slots: bool) -> bool:
        try:
            mine = self._myself(node)
        except redis.RedisError:
            return False
        return flag in mine[2].split(",") and (len(mine) > 8) == slots

    def _myself(self, node: int) -> list[str]:
        return next(line.split() for line in self._nodes(node) if "myself" in line)

    def _nodes(self, node: int) -> list[str]:
        answer = self.clients[node].execute_command("CLUSTER", "NODES")
        return (answer.decode() if isinstance(answer, bytes) else str(answer)).splitlines()

    def _id(self, node: int) -> str:
        return self._myself(node)[0]

    def _at(self, port: int) -> int:
        return next(node for node in range(NODES) if self.servers[node].port == port)
