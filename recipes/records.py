"""`supernet records`: the measurements of a store as a file."""

from __future__ import annotations

from pathlib import Path


def records(store: str, out: str, table: str = "latency", overwrite: bool = False) -> int:
    """Write the measurements of a store as a file: .csv or .parquet.

    Args:
        store: SQLite file, as `specialize` and `measure` leave it beside the supernet.
        out: file to write; its suffix says which.
        table: latency, confirmation, footprint, failure, accuracy or items.
        overwrite: let it replace a file.

    Returns:
        the number of records
    """
    from predictors.store import Store

    path = Path(out)
    if not Path(store).is_file():
        raise FileNotFoundError(f"{store} is not there")  # opening it would make one
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} already exists: choose another --out, or --overwrite true")
    path.parent.mkdir(parents=True, exist_ok=True)
    with Store(store) as measurements:
        written = measurements.write(table, path)
    print(f"{written} records written to {path}")
    return written
