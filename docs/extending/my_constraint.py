"""A constraint: the number of blocks of a convolutional network."""

import numpy as np

from recipes.constraints import CONSTRAINTS, Constraint


class Blocks(Constraint):
    def __init__(self, lab, name, bound, samples) -> None:
        super().__init__(lab, name, bound, samples)
        self.columns = lab.space.columns["depth"]

    @classmethod
    def refuse(cls, lab, name, bound) -> None:
        least = sum(lab.space.smallest().depth)
        if bound < least:
            raise ValueError(f"{name} = {bound:g} cannot be met: the smallest network has {least}")

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X[:, self.columns].sum(axis=1)


CONSTRAINTS["blocks"] = Blocks
