"""The store: every latency and accuracy that was ever measured, in one SQLite file that outlives runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, ...]

APPLICATION, VERSION = 0x53555052, 2  # "SUPR", kept in the file's header with the version of its tables
TABLES = {
    "latency": ("network_id", "device_id"),
    "failure": ("network_id", "device_id"),
    "accuracy": ("network_id", "weights_id", "data_id"),
}


def digest(value: Any) -> str:
    """sha256 of a JSON value in canonical form: sorted keys, 1 for 1.0; NaN and infinity raise ValueError."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def network_id(family: str, arguments: Mapping[str, Any], config: Any) -> str:
    """The identity of an architecture, without its weights: equal ids take equally long.

    `arguments` are the family's that shape the network (widths, classes, input channels; not dropout); `config` is a
    frozen config, its resolution included.
    """
    return digest([family, dict(arguments), dataclasses.asdict(config)])


class Store:
    """Measurements by key, only ever added to; a context manager.

    `latency` and `failure` are keyed by (network_id, device_id), `accuracy` by (network_id, weights_id, data_id). A
    record is a dict of JSON values; one key may have several, as they were taken. Each `add` is a commit of its own, so
    that a killed process loses nothing that `add` returned from; several processes may write at once, each with its own
    Store.
    A file that is not a store, is damaged or has other tables raises ValueError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise self._named(error) from error
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        damage = self._pragma("quick_check(1)")
        if damage != "ok":
            raise ValueError(f"{self.path} is damaged: {damage}")
        if self._pragma("schema_version") == 0:
            self._pragma("journal_mode = WAL")
            self._execute("BEGIN IMMEDIATE")  # another process may be making it, too
            if self._pragma("schema_version") == 0:
                for table, key in TABLES.items():
                    columns = ", ".join(f"{name} TEXT NOT NULL" for name in key)
                    self._execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {columns}, record TEXT NOT NULL)")
                    self._execute(f"CREATE INDEX {table}_key ON {table} ({', '.join(key)})")
                self._execute(f"PRAGMA application_id = {APPLICATION}")
                self._execute(f"PRAGMA user_version = {VERSION}")
            self._execute("COMMIT")
        if self._pragma("application_id") != APPLICATION:
            raise ValueError(f"{self.path} is an SQLite database, but not a store of measurements")
        version = self._pragma("user_version")
        if version != VERSION:
            raise ValueError(f"{self.path} is a store of version {version}; this program reads version {VERSION}")
        self._execute("PRAGMA synchronous = FULL")

    def add(self, table: str, key: Key, record: Mapping[str, Any]) -> None:
        """Append a record; it is on the disk when this returns."""
        names = TABLES[table]
        if len(key) != len(names):
            raise ValueError(f"a key of {table} is {names}, not {key!r}")
        text = json.dumps(record, allow_nan=False)
        marks = ", ".join("?" * (len(names) + 1))
        self._execute(f"INSERT INTO {table} ({', '.join(names)}, record) VALUES ({marks})", (*key, text))

    def get(self, table: str, keys: Iterable[Key]) -> dict[Key, list[dict[str, Any]]]:
        """The records of each key that has any, oldest first."""
        names = TABLES[table]
        parts = ", ".join(f"json_extract(wanted.value, '$[{i}]')" for i in range(len(names)))
        # CROSS JOIN keeps SQLite's planner from walking the table to look each row up among the keys.
        rows = self._execute(
            f"SELECT {', '.join(names)}, record FROM json_each(?) AS wanted CROSS JOIN {table} "
            f"ON ({', '.join(names)}) = ({parts}) ORDER BY {table}.id",
            (json.dumps(list(dict.fromkeys(keys))),),
        )
        records: dict[Key, list[dict[str, Any]]] = {}
        for *key, record in rows:
            records.setdefault(tuple(key), []).append(json.loads(record))
        return records

    def records(self, table: str, **columns: str) -> list[dict[str, Any]]:
        """All records whose key has these values, oldest first."""
        if unknown := columns.keys() - set(TABLES[table]):
            raise ValueError(f"{table} has no column {sorted(unknown)}; its key is {TABLES[table]}")
        where = " AND ".join(f"{name} = ?" for name in columns) or "TRUE"
        rows = self._execute(f"SELECT record FROM {table} WHERE {where} ORDER BY id", tuple(columns.values()))
        return [json.loads(record) for (record,) in rows]

    def missing(self, table: str, keys: Iterable[Key]) -> list[Key]:
        """The keys without a record, each once, in their order."""
        keys = list(dict.fromkeys(keys))
        known = self.get(table, keys)
        return [key for key in keys if key not in known]

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _execute(self, statement: str, values: tuple = ()) -> list[tuple]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._named(error) from error

    def _pragma(self, statement: str) -> Any:
        return self._execute(f"PRAGMA {statement}")[0][0]

    def _named(self, error: sqlite3.Error) -> Exception:
        """SQLite's errors name no file. ValueError for a damaged or foreign one, OSError for what the disk refuses."""
        if isinstance(error, sqlite3.OperationalError):
            return OSError(f"{self.path}: {error}")
        return ValueError(f"{self.path} is damaged or not a store of measurements: {error}")


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
