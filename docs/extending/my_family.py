"""A family: a perceptron with one hidden layer of elastic width."""

import dataclasses

import numpy as np
import torch

from supernet import SearchSpace, Supernet
from supernet.elastic import ElasticLinear
from supernet.model import WidthGroup
from supernet.space import Choice


@dataclasses.dataclass(frozen=True)
class PerceptronConfig:
    width: int


def perceptron_space(width=(16, 32, 64)) -> SearchSpace:
    return SearchSpace(PerceptronConfig, (Choice("width", tuple(width)),))


class Perceptron(Supernet):
    config_class = PerceptronConfig

    def __init__(self, space: SearchSpace | None = None, num_classes: int | None = None, pixels: int | None = None):
        space = space or perceptron_space()
        super().__init__(space, {"num_classes": num_classes, "pixels": pixels})
        self.hidden = ElasticLinear(pixels, space.largest().width)
        self.output = ElasticLinear(space.largest().width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.hidden(images.flatten(1)).relu())

    def _activate(self, config: PerceptronConfig) -> None:
        self.hidden.set_active(self.arguments["pixels"], config.width)
        self.output.set_active(config.width, self.arguments["num_classes"])

    def width_groups(self, space: SearchSpace):
        yield WidthGroup(self.output.input_importance(), [self.hidden], [self.output], space["width"].values)

    @classmethod
    def arguments_from(cls, input_spec):
        return {"num_classes": input_spec["classes"], "pixels": int(np.prod(input_spec["shape"]))}

    def example_inputs(self, batch: int = 1):
        return (torch.randn(batch, self.arguments["pixels"], generator=torch.Generator().manual_seed(0)),)

    @property
    def cost_terms(self):
        return PerceptronCosts(self.space, self.arguments["num_classes"], self.arguments["pixels"])


@dataclasses.dataclass(frozen=True)
class PerceptronCosts:
    space: SearchSpace
    num_classes: int
    pixels: int

    def __call__(self, X: np.ndarray) -> dict[str, np.ndarray]:
        width, sizes = X[:, 0], self.pixels + self.num_classes
        return {"macs.linear": width * sizes, "params.linear": width * (sizes + 1) + self.num_classes}


FAMILIES = ("Perceptron",)
