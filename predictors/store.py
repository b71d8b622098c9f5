"""The store: every latency and accuracy that was ever measured, in one SQLite file that outlives runs."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import re
import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a key, whose values are names, and those of a record, with what each holds.

    NAME and SHARED JSON are kept once, however many rows have them.
    """

    key: tuple[str, ...]
    record: dict[str, str]  # REAL, INTEGER, TEXT, JSON, NAME or SHARED JSON


APPLICATION, VERSION = 0x53555052, 10  # "SUPR", kept in the file's header with the version of its tables
RUNS = ("min", "p10", "median", "p90")  # in ms, of the runs of a network and of its reference, in all and when quiet
FIGURES = (*RUNS, "noise", *(f"{kind}_{name}" for kind in ("reference", "quiet") for name in RUNS))
LATENCY = Table(
    ("network_id", "device_id"),
    dict.fromkeys(FIGURES, "REAL")
    | {"rounds": "INTEGER", "runs": "INTEGER", "reference": "NAME", "taken": "TEXT", "device": "SHARED JSON"},
)
TABLES = {
    "latency": LATENCY,
    "confirmation": LATENCY,  # of networks that met a budget: each round by another process
    "footprint": Table(("network_id", "device_id", "kind"), {"mb": "REAL"}),
    "failure": Table(("network_id", "device_id"), {"reasons": "JSON", "taken": "TEXT", "device": "SHARED JSON"}),
    "accuracy": Table(("network_id", "weights_id", "data_id"), {"accuracy": "REAL", "loss": "REAL"}),
    "items": Table(
        ("network_id", "weights_id", "data_id"), {"accuracy": "JSON", "loss": "JSON", "counted": "JSON"}
    ),  # of each image or sentence
    "search": Table(("search_id",), {"found": "JSON"}),  # the rows that a search found, by all that decides them
    # Metrics other than accuracy and loss: of a network, and of each image or sentence.
    "metric": Table(("network_id", "weights_id", "data_id", "metric"), {"mean": "REAL"}),
    "metric_items": Table(("network_id", "weights_id", "data_id", "metric"), {"of_items": "JSON"}),
}
ADDED = {9: ("search",), 10: ("metric", "metric_items")}  # tables, by the version of the store that added them
SHA256 = re.compile("[0-9a-f]{64}")
CHUNK = 500  # values in one statement
WAIT = 60  # seconds for what another process is writing
SMALL = 32e6  # bytes of a file that is checked in full whenever it is opened, which takes some tenths of a second


def read_through(path: Path) -> None:
    """Read a file from end to end, so that the system has it in memory."""
    block = bytearray(4 * 1024**2)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


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

    `TABLES` has the columns: `latency`, `confirmation` and `failure` are keyed by (network_id, device_id), `footprint`
    by its kind too, `accuracy` and `items` by (network_id, weights_id, data_id). Failures of delivered files are keyed
    by the identity of the network with its weights. One key may have several records, as they were taken.
    Each `add` is a commit of its own, so that a killed process loses nothing that `add` returned from; several
    processes may write at once, each with its own Store. A file that is not a store, is damaged or has other tables
    raises ValueError: what SQLite's quick_check finds when it is opened (its integrity_check, which also compares
    indices with their tables, up to 32 MB), and a record that is not the one which was written, when it is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ids: dict[bytes | str, int] = {}  # of names, which never change
        try:
            self._database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
        except sqlite3.Error as error:
            raise self._named(error) from error
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        small = not self.path.is_file() or self.path.stat().st_size < SMALL
        if not small:
            read_through(self.path)  # the check reads the pages in no order, which takes a disk longer
        damage = self._pragma("integrity_check(1)" if small else "quick_check(1)")
        if damage != "ok":
            raise ValueError(f"{self.path} is damaged: {damage}")
        if self._pragma("schema_version") == 0:
            # Large pages: opening reads all of them, and a disk is slow at many small ones in no order.
            self._execute("PRAGMA page_size = 32768")
            self._write_ahead()
            self._execute("BEGIN IMMEDIATE")  # another process may be making it, too
            if self._pragma("schema_version") == 0:
                for statement in schema():
                    self._execute(statement)
                self._execute(f"PRAGMA application_id = {APPLICATION}")
                self._execute(f"PRAGMA user_version = {VERSION}")
            self._execute("COMMIT")
        if self._pragma("application_id") != APPLICATION:
            raise ValueError(f"{self.path} is an SQLite database, but not a store of measurements")
        if self._pragma("user_version") + 1 in ADDED:
            self._add_tables()
        version = self._pragma("user_version")
        if version != VERSION:
            raise ValueError(f"{self.path} is a store of version {version}; this program reads version {VERSION}")
        if [sql for (sql,) in self._execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")] != schema():
            raise ValueError(f"{self.path} is damaged: its tables are not those that were made")
        self._execute("PRAGMA synchronous = FULL")

    def _add_tables(self) -> None:
        """Give a store of an earlier version the tables that were added since."""
        self._execute("BEGIN IMMEDIATE")
        for version in range(self._pragma("user_version") + 1, VERSION + 1):  # another process may have done it
            for statement in schema(ADDED[version]):
                self._execute(statement)
        self._execute(f"PRAGMA user_version = {VERSION}")
        self._execute("COMMIT")

    def _write_ahead(self) -> None:
        """Turn an empty database to WAL. Of processes that do so at once SQLite refuses some without waiting."""
        until = time.monotonic() + WAIT
        while self._pragma("schema_version") == 0:
            try:
                self._pragma("journal_mode = WAL")
                return
            except OSError as error:
                if not error.__cause__.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def add(self, table: str, key: Key, record: Mapping[str, Any]) -> None:
        """Append a record; it is on the disk when this returns. ValueError for other columns, or for a NaN."""
        self.extend(table, [(key, record)])

    def extend(self, table: str, items: Iterable[tuple[Key, Mapping[str, Any]]]) -> None:
        """Append many records, all or none, in one commit."""
        columns = TABLES[table]
        kinds = [*["NAME"] * len(columns.key), *columns.record.values()]
        names = [i for i, kind in enumerate(kinds) if kind in NAMES]
        filled = [*columns.key, *columns.record, "crc"]
        insert = f"INSERT INTO {table} ({', '.join(filled)}) VALUES ({marks(len(filled))})"
        self._execute("BEGIN IMMEDIATE")
        try:
            for key, record in items:
                if len(key) != len(columns.key):
                    raise ValueError(f"a key of {table} is {columns.key}, not {key!r}")
                if record.keys() != columns.record.keys():
                    raise ValueError(f"a record of {table} has {', '.join(columns.record)}, not {', '.join(record)}")
                values = [*key, *(_encoded(column, record[column], kind) for column, kind in columns.record.items())]
                for i in names:
                    values[i] = self._intern(_packed(values[i]))
                self._execute(insert, (*values, crc(values)))
            self._execute("COMMIT")
        except BaseException:
            self._database.rollback()
            self._ids.clear()
            raise

    def first(self, table: str, keys: Iterable[Key]) -> int | None:
        """The place in the table of the first record of any of these keys."""
        _, source, values = self._found(table, keys)
        return self._execute(f"SELECT min({table}.id) {source}", values)[0][0]

    def get(self, table: str, keys: Iterable[Key], before: int | None = None) -> dict[Key, list[dict[str, Any]]]:
        """The records of each key that has any, oldest first; only those `before` a place in the table, if given."""
        columns = TABLES[table]
        ids, source, values = self._found(table, keys)
        if before is not None:
            source, values = f"{source} AND {table}.id < ?", (*values, before)
        filled = ", ".join([*columns.key, *columns.record, "crc"])
        rows = self._checked(f"SELECT {filled} {source} ORDER BY {table}.id", values)
        records: dict[Key, list[dict[str, Any]]] = {}
        for row, record in zip(rows, self._decoded(columns.record, [row[len(columns.key) :] for row in rows])):
            records.setdefault(ids[row[: len(columns.key)]], []).append(record)
        return records

    def _found(self, table: str, keys: Iterable[Key]) -> tuple[dict[tuple, Key], str, tuple]:
        """The keys by the ids of their names; what follows SELECT to find their rows, and its values."""
        keys, columns = list(dict.fromkeys(keys)), TABLES[table]
        self._look_up(_packed(name) for key in keys for name in key)
        ids = {tuple(self._ids.get(_packed(name)) for name in key): key for key in keys}
        wanted = [key for key in ids if None not in key]
        parts = ", ".join(f"json_extract(wanted.value, '$[{i}]')" for i in range(len(columns.key)))
        # CROSS JOIN keeps SQLite's planner from walking the table to look each row up among the keys.
        source = f"FROM json_each(?) AS wanted CROSS JOIN {table} ON ({', '.join(columns.key)}) = ({parts})"
        return ids, source, (json.dumps(wanted),)

    def records(self, table: str, **columns: str) -> list[dict[str, Any]]:
        """All records whose key has these values, oldest first."""
        names = TABLES[table].key
        if unknown := columns.keys() - set(names):
            raise ValueError(f"{table} has no column {sorted(unknown)}; its key is {names}")
        self._look_up(map(_packed, columns.values()))
        ids = tuple(self._ids.get(_packed(value)) for value in columns.values())
        where = " AND ".join(f"{name} = ?" for name in columns) or "TRUE"
        filled = ", ".join([*names, *TABLES[table].record, "crc"])
        rows = self._checked(f"SELECT {filled} FROM {table} WHERE {where} ORDER BY id", ids)
        return self._decoded(TABLES[table].record, [row[len(names) :] for row in rows])

    def values(self, table: str, column: str) -> list[str]:
        """The different values of a column of a table's key."""
        if column not in TABLES[table].key:
            raise ValueError(f"{table} has no column {column!r} in its key {TABLES[table].key}")
        rows = self._execute(f"SELECT DISTINCT {column} FROM {table}")
        return sorted(row[column] for row in self._decoded({column: "NAME"}, rows))

    def write(self, table: str, path: str | Path) -> int:
        """Write a table to a file, oldest record first, the columns of its key before the others; returns how many.

        By its suffix the file is .csv or .parquet (which needs pyarrow); what is JSON in the table is JSON in it.
        """
        path = Path(path)
        if table not in TABLES or path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{table} as {path}: a table is one of {', '.join(TABLES)}, a file .csv or .parquet")
        columns = dict.fromkeys(TABLES[table].key, "NAME") | TABLES[table].record
        shown = columns | {name: "TEXT" for name, kind in columns.items() if kind == "JSON"}
        rows = self._decoded(shown, self._checked(f"SELECT {', '.join(columns)}, crc FROM {table} ORDER BY id"))
        for row in rows:
            row |= {name: json.dumps(row[name]) for name, kind in columns.items() if kind == "SHARED JSON"}
        if path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(rows)
            return len(rows)
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError("pyarrow is not installed: pip install pyarrow, or write a .csv file") from error
        parquet.write_table(pyarrow.table({name: [row[name] for row in rows] for name in columns}), path)
        return len(rows)

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

    def _look_up(self, names: Iterable[bytes | str]) -> None:
        """Learn the ids of those names that the store has."""
        unknown = [name for name in dict.fromkeys(names) if name not in self._ids]
        for start in range(0, len(unknown), CHUNK):
            some = tuple(unknown[start : start + CHUNK])
            self._ids |= self._execute(f"SELECT value, id FROM name WHERE value IN ({marks(len(some))})", some)

    def _intern(self, name: bytes | str) -> int:
        """The id of a name, which gets one if it has none; inside a transaction."""
        self._look_up([name])
        if name not in self._ids:
            ((self._ids[name],),) = self._execute("INSERT INTO name (value) VALUES (?) RETURNING id", (name,))
        return self._ids[name]

    def _decoded(self, kinds: Mapping[str, str], rows: Sequence[tuple]) -> list[dict[str, Any]]:
        """The records in rows of columns of these kinds."""
        ids = sorted({value for row in rows for value, kind in zip(row, kinds.values()) if kind in NAMES})
        names: dict[int, bytes | str] = {}
        for start in range(0, len(ids), CHUNK):
            some = tuple(ids[start : start + CHUNK])
            names |= self._execute(f"SELECT id, value FROM name WHERE id IN ({marks(len(some))})", some)
        if len(names) < len(ids):
            raise ValueError(f"{self.path} is damaged: {len(ids) - len(names)} names of records are not there")
        decode = {
            "JSON": json.loads,
            "NAME": lambda i: names[i].hex() if isinstance(names[i], bytes) else names[i],
            "SHARED JSON": cache(lambda i: json.loads(names[i])),
        }
        functions = [decode.get(kind, lambda value: value) for kind in kinds.values()]
        return [dict(zip(kinds, (f(value) for f, value in zip(functions, row)))) for row in rows]

    def _checked(self, statement: str, values: tuple = ()) -> list[tuple]:
        """Rows, without the crc that is their last column, which says whether they are what was written."""
        rows = self._execute(statement, values)
        if any(crc(row[:-1]) != row[-1] for row in rows):
            raise ValueError(f"{self.path} is damaged: a record is not the one that was written")
        return [row[:-1] for row in rows]

    def _execute(self, statement: str, values: tuple = ()) -> list[tuple]:
        try:
            return self._database.execute(statement, values).fetchall()
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError):  # a wrong call, as of a store that is closed
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a text that is damaged
            raise self._named(error) from error

    def _pragma(self, statement: str) -> Any:
        return self._execute(f"PRAGMA {statement}")[0][0]

    def _named(self, error: Exception) -> Exception:
        """SQLite's errors name no file. ValueError for a damaged or foreign one, OSError for what the disk refuses."""
        if isinstance(error, sqlite3.OperationalError):
            return OSError(f"{self.path}: {error}")
        return ValueError(f"{self.path} is damaged or not a store of measurements: {error}")


NAMES = ("NAME", "SHARED JSON")
SQL_TYPES = {
    "REAL": "REAL NOT NULL",
    "INTEGER": "INTEGER NOT NULL",
    "TEXT": "TEXT NOT NULL",
    "JSON": "TEXT NOT NULL",
    "NAME": "INTEGER NOT NULL",
    "SHARED JSON": "INTEGER NOT NULL",
}


def schema(added: Sequence[str] | None = None) -> list[str]:
    """The statements that make the tables: all, or those that are `added` to a store."""
    statements = [] if added else ["CREATE TABLE name (id INTEGER PRIMARY KEY, value UNIQUE NOT NULL)"]
    for name in added or TABLES:
        table = TABLES[name]
        types = dict.fromkeys(table.key, "NAME") | table.record
        columns = ", ".join(f"{column} {SQL_TYPES[kind]}" for column, kind in types.items())
        statements += [
            f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, {columns}, crc INTEGER NOT NULL)",
            f"CREATE INDEX {name}_key ON {name} ({', '.join(table.key)})",
        ]
    return statements


def crc(values: Sequence[Any]) -> int:
    """A checksum of a row as its columns hold it."""
    return zlib.crc32(repr(tuple(values)).encode())


def marks(n: int) -> str:
    """n placeholders of a statement."""
    return ", ".join("?" * n)


def _encoded(column: str, value: Any, kind: str) -> Any:
    """A value as its column holds it."""
    if kind in ("JSON", "SHARED JSON"):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    if kind == "REAL" and not math.isfinite(value):
        raise ValueError(f"{column} = {value} is NaN or infinite")
    if kind == "REAL":
        return float(value) + 0.0  # SQLite has no -0.0
    return {"INTEGER": int, "TEXT": str, "NAME": str}[kind](value)


def _packed(name: str) -> bytes | str:
    """A sha256 in half the space; other names as they are."""
    return bytes.fromhex(name) if SHA256.fullmatch(name) else name


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
