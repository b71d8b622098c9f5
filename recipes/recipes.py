"""`supernet recipes`: the shipped recipes, listed and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from supernet.values import did_you_mean

RECIPES = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """{name: file} of the shipped recipes."""
    return {str(path.relative_to(RECIPES).with_suffix("")): path for path in sorted(RECIPES.glob("*/*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe; ValueError lists their names."""
    known = shipped()
    if (short := name.removesuffix(".yaml")) not in known:
        hint = did_you_mean(short, known) or "."
        raise ValueError(
            f"no recipe file {name!r}, and none is shipped under that name{hint} Shipped: {', '.join(known)}"
        )
    return known[short]


def recipe_path(name: str) -> str:
    """A recipe file as given, or the shipped recipe of that name."""
    return name if Path(name).is_file() else str(find_recipe(name))


def summary(path: Path) -> str:
    """The first line of the comment that opens a recipe."""
    return path.read_text().partition("\n")[0].removeprefix("# ")


def recipes(copy: str | None = None, to: str | None = None) -> dict[str, str]:
    """List the shipped recipes, or copy one of them to a file that you can edit.

    `supernet recipes copy ofa/digits my.yaml` is short for `supernet recipes --copy ofa/digits --to my.yaml`.

    Args:
        copy: name of the recipe to copy.
        to: file to write; it must not exist.

    Returns:
        {name: what the recipe trains}
    """
    if (copy is None) != (to is None):
        given = f"the recipe {copy}" if to is None else f"the file {to}"
        raise ValueError(f"only {given} is given: name a recipe and a file: supernet recipes copy ofa/digits my.yaml")
    if copy is not None:
        source, target = find_recipe(copy), Path(to)
        if target.exists():
            raise FileExistsError(f"{target} already exists: choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(f"{target} is a copy of {copy}. Train it: supernet fit --config {target}")
        return {copy: summary(source)}
    found = {name: summary(path) for name, path in shipped().items()}
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()))
    print("\nTrain one: supernet fit --config NAME. Copy one to edit it: supernet recipes copy NAME my.yaml")
    return found
