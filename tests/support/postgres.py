"""A PostgreSQL server of Debian's package, in a temporary folder and as a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.mlflow_server import free_port

PASSWORD = "pg-secret-1"


def postgres_programs() -> Path | None:
    """The folder with initdb and postgres; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = str(found[-1]) if found else shutil.which("initdb")
    return Path(os.path.realpath(program)).parent if program else None


@contextmanager
def postgres(programs: Path, *databases: str) -> Iterator[list[str]]:
    """The URIs of databases, with the user and the password; the server ends after the block."""
    port, user = free_port(), _user()
    with tempfile.TemporaryDirectory(prefix="postgres-") as home:
        data, secret = Path(home, "data"), Path(home, "password")
        secret.write_text(PASSWORD)
        if user:
            for path in (home, secret):
                shutil.chown(path, user)
        _run(programs, user, "initdb", "-D", str(data), "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={secret}")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off"
        log = str(Path(home, "log"))
        _run(programs, user, "pg_ctl", "-D", str(data), "-l", log, "-w", "-o", options, "start")
        try:
            address = f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{port}"
            _create(f"{address}/postgres", databases)
            yield [f"{address}/{name}" for name in databases]
        finally:
            _run(programs, user, "pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _run(programs: Path, user: str | None, name: str, *arguments: str) -> None:
    command = [str(programs / name), *arguments]
    subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _create(uri: str, databases: Sequence[str]) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in databases:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
