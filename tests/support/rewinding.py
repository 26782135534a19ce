"""A PostgreSQL that loses its last commits, as in a failover to a replica that lags or a restored backup."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from langgraph.checkpoint.postgres import PostgresSaver

from langgraph_checkpoint_cached.demo.embedded import PostgresServer, unprivileged_user
from langgraph_checkpoint_cached.stores.postgres.schema import CREATE_OWN_TABLES


class RewindingPostgres(PostgresServer):
    """Server that can be replaced, behind its address, by an earlier state of itself.

    Args:
        settings: Settings of postgresql.conf.
        standby_of: Server whose saved state this one has, as a standby that follows nobody.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, standby_of: RewindingPostgres | None = None
    ) -> None:
        super().__init__({"fsync": "off", **(settings or {})})
        self._primary = standby_of
        if standby_of is not None:
            self._password = urlsplit(standby_of.url).password or ""

    @property
    def saved(self) -> Path:
        """Directory with the state of `save`."""
        assert self._directory is not None
        return self._directory / "saved"

    def migrate(self) -> None:
        """Create the tables."""
        with PostgresSaver.from_conn_string(self.url) as saver:
            saver.setup()
            for statement in CREATE_OWN_TABLES:
                saver.conn.execute(statement)

    def save(self) -> None:
        """Restart, and keep the state of now."""
        self.stop()
        _copy(self._data, self.saved)
        self.start()

    def rewind(self) -> None:
        """Crash, and come back with the state of `save`."""
        self.kill()
        _copy(self.saved, self._data)
        self.start()

    @property
    def _data(self) -> Path:
        return self.saved.with_name("home") / "data"

    def _initialize(self, data: Path, initdb: Path) -> None:
        if self._primary is None:
            super()._initialize(data, initdb)
            return
        data.parent.mkdir(mode=0o700)
        _copy(self._primary.saved, data)
        (data / "standby.signal").touch()
        _give_away(data.parent)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    _give_away(target)


def _give_away(directory: Path) -> None:
    if user := unprivileged_user():
        for path in (directory, *directory.rglob("*")):
            shutil.chown(path, user["user"], user["group"])
