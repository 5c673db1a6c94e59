"""DataInf: the inverse of a mean of rank-one matrices, taken as the mean of their inverses."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.sample_gradients import Blocks
from afterfit.influence.base import BlockInfluence, Influence
from afterfit.influence.tracin import GradientDot
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class DataInf:
    """Closed-form influence, layer by layer, from inner products of gradients alone.

    In layer l, with gradients g of that layer and ``λ_l = damping · mean(g²)``::

        score(q, n) = Σ_l 1/λ_l [g_q · g_n - 1/N Σ_i (g_q · g_i)(g_i · g_n) / (λ_l + ‖g_i‖²)]

    which replaces the inverse of the mean of ``g_i g_iᵀ + λ_l I`` by the mean of the inverses. It
    was made for a few parameters per layer (LoRA), and is far from the influence function where a
    layer is wide. A layer is a weight with its bias. Inner products come from factors of layers;
    N × N of them are made a chunk of columns at a time. The score is exact by this definition.

    References
    ----------
    Kwon, Wu, Wu, Zou (2024), "DataInf: efficiently estimating data influence in LoRA-tuned LLMs and
    diffusion models", ICLR, arXiv:2310.00902, eq. (5); λ as in its section 3 (damping 0.1).
    """

    damping: float | int = 0.1
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Kwon, Wu, Wu, Zou (2024), DataInf: efficiently estimating data influence in LoRA-tuned "
        "LLMs and diffusion models, ICLR, arXiv:2310.00902"
    )

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            message = f"damping is {self.damping}, expected a number above 0; the paper has 0.1"
            raise ValueError(message)

    def fit(self, problem: Problem, train: Batches) -> "DataInfInfluence":
        """Find the damping of each layer: one pass over the gradients.

        Raises
        ------
        ValueError
            If all gradients of a layer are zero: there is nothing to divide by.
        """
        dots = GradientDot(self.memory_budget).fit(problem, train)
        norms: dict[str, list[Tensor]] = {}
        sizes: dict[str, int] = {}
        for _, (blocks,) in dots.kept_features():
            for name, part in blocks.items():
                norms.setdefault(name, []).append(part.squared_norms())
                sizes[name] = part.num_entries
        layers = {}
        for name, found in norms.items():
            squares = torch.cat(found)
            damping = self.damping * float(squares.double().mean()) / sizes[name]
            _require_positive(name, damping)
            layers[name] = _Layer(damping, 1 / (damping + squares) / train.num_samples)
        return DataInfInfluence(problem, train, dots, layers)


@final
@dataclass(frozen=True)
class _Layer:
    """Damping λ, and ``1 / (N (λ + ‖g_i‖²))`` of each training sample."""

    damping: float
    weights: Float[Tensor, " N"]


@final
@dataclass(frozen=True)
class DataInfInfluence(Influence):
    """Inner products of gradients, and what each layer divides them by."""

    problem: Problem
    train: Batches
    dots: BlockInfluence
    layers: dict[str, _Layer]

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Influence of every training sample (columns) on the loss of every query (rows)."""
        like = next(iter(self.problem.params.values()))
        result = like.new_empty(query.num_samples, self.train.num_samples)
        for rows, asked in self.dots.query_features(query):
            through = {name: self._against_train(asked[0], name) for name in self.layers}
            for columns, (own,) in self.dots.kept_features():
                total = like.new_zeros(len(rows), len(columns))
                for name, layer in self.layers.items():
                    if name not in own or name not in asked[0]:
                        continue
                    back = (through[name] * layer.weights) @ self._against_train(own, name).mT
                    total += (asked[0][name].inner(own[name]) - back) / layer.damping
                result[rows[:, None], columns] = total
        return result

    def self_scores(self) -> Float[Tensor, " N"]:
        """Influence of every training sample on its own loss."""
        like = next(iter(self.problem.params.values()))
        result = like.new_zeros(self.train.num_samples)
        for columns, (own,) in self.dots.kept_features():
            for name, layer in self.layers.items():
                if name in own:
                    back = self._against_train(own, name).square() @ layer.weights
                    result[columns] += (own[name].squared_norms() - back) / layer.damping
        return result

    def _against_train(self, blocks: Blocks, name: str) -> Float[Tensor, "A N"]:
        """Inner products with all training samples in one layer."""
        if name not in blocks:
            return next(iter(blocks.values())).inputs.new_zeros(1, self.train.num_samples)
        part = blocks[name]
        result = part.inputs.new_zeros(len(part), self.train.num_samples)
        for columns, (own,) in self.dots.kept_features():
            if name in own:
                result[:, columns] = part.inner(own[name])
        return result


def _require_positive(name: str, damping: float) -> None:
    if not 0 < damping < float("inf"):
        message = (
            f"the gradients of {name} give a damping of {damping}, expected a positive one: they "
            "are all zero or not finite; leave the layer out with restrict(problem, ...), or use "
            "float64"
        )
        raise ValueError(message)
