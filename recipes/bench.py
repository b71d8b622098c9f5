"""Names that moved to `recipes.lab`."""

from recipes.lab.keys import data_digest as data_digest
from recipes.lab.splits import HELD_OUT, SELECTION, TEST, batches_of

PARTS = {"select": SELECTION, "report": HELD_OUT, "test": TEST}


def part_of(data, name):
    """`recipes.lab.splits.batches_of` by the names that splits had before."""
    return batches_of(data, PARTS[name])
