"""PgBouncer in transaction mode, as many Postgres deployments have it in front."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

from langgraph_checkpoint_cached.demo.embedded import (
    LOCALHOST,
    EmbeddedServer,
    EmbeddedServerError,
    unprivileged_user,
)


class PgBouncer(EmbeddedServer):
    """The `pgbouncer` of this machine, in front of the server of `target_url`.

    Args:
        settings: of the `[pgbouncer]` section, such as `{"max_prepared_statements": "100"}`.
    """

    name = "PgBouncer"

    def __init__(self, target_url: str, settings: dict[str, str] | None = None) -> None:
        super().__init__()
        self._target = urlsplit(target_url)
        self._settings = settings or {}

    @property
    def url(self) -> str:
        return self._target._replace(netloc=f"{self._target.username}@{LOCALHOST}:{self.port}").geturl()

    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if binary is None:
            raise EmbeddedServerError("No pgbouncer found: apt install pgbouncer")
        target = {
            "host": self._target.hostname or LOCALHOST,
            "port": str(self._target.port or 5432),
            "user": self._target.username or "",
            "password": unquote(self._target.password or ""),
        }
        settings = {
            "listen_addr": LOCALHOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",  # of its clients; it logs in to the server as `target` says
            "pool_mode": "transaction",
            **self._settings,
        }
        user = unprivileged_user()
        config = directory / "pgbouncer.ini"
        config.touch(mode=0o600)
        config.write_text(
            "[databases]\n* = "
            + " ".join(f"{name}={value}" for name, value in target.items())
            + "\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        if user:
            os.chown(config, user["user"], user["group"])
        return self._popen([binary, config], directory, **user)

    def _is_ready(self, process: subprocess.Popen[bytes], directory: Path) -> bool:
        try:
            socket.create_connection((LOCALHOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True
