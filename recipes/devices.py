"""`supernet devices`: which devices work on this machine."""

from __future__ import annotations

from pathlib import Path


def devices() -> dict[str, str]:
    """List the devices, each tried on this machine with a small network.

    Returns:
        {name: "works", or why it does not}
    """
    import tempfile

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from predictors.devices import known_devices
    from recipes.lab.trial import try_device

    table = Table("device", "runtime", "precision", "threads", "on this machine", box=None)
    results = {}
    for name, make in sorted(known_devices().items()):
        with tempfile.TemporaryDirectory() as folder:
            try:
                device = make()
                try_device(device, Path(folder))
                results[name] = "works"
            except Exception as error:  # whatever another package's device, or a runtime, makes of it
                results[name] = str(error)
        columns = (device.runtime, device.precision, str(device.threads)) if results[name] == "works" else ("", "", "")
        table.add_row(
            name, *columns, escape(results[name].splitlines()[0]) if results[name] else "fails, and does not say why"
        )
    Console().print(table)
    return results
