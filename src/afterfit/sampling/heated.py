"""A walk from the trained network that heats stage by stage, until what was memorized comes loose.

No rate is searched for: each stage trains on at a higher one, from where nothing moves to where
only what samples share survives. Cold stages unsettle nothing, so that the hot ones start from a
network that has adapted to the decay; what a sample must be remembered for goes first, and what the
others teach too goes last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from afterfit.problem.data import TrainingStream
from afterfit.problem.ensemble import Member, Store
from afterfit.problem.problem import Problem
from afterfit.sampling.geometric import adamw, warm_cosine
from afterfit.sampling.walk import StageTraining, Start, train_alone

RATES = tuple(0.0032 * 2.0**k for k in range(6))
"""Rates of the stages, each twice the one before: 0.0032 to 0.1."""

_FEWEST_STEPS = 18  # below, a stage of a small data set has no time to move


@final
@dataclass(frozen=True)
class HeatedWalk:
    """Members found while training goes on from the trained network at rising rates.

    The optimizer is AdamW (Loshchilov and Hutter 2019), whose steps have a length that does not
    depend on the scale of a layer, so that the same rates do for perceptrons, convolutions and
    embeddings. Its decay decides what is forgotten: with 1 the network keeps rare words, with 4
    it gives up directions of wide features that serve one sample alone.

    Parameters
    ----------
    rates
        Peak learning rate of each stage; a stage starts where the one before has ended.
    decay
        Decoupled weight decay of AdamW.
    epochs
        Length of a stage in epochs; at least 18 steps are taken.
    clip
        Largest norm of the gradient, or None.
    chain
        Number of the walk, by which its members are kept.
    seed
        Of the order of the data, the augmentation and dropout.

    References
    ----------
    Kim, Kim and Yang 2023, "GEX", NeurIPS, section 4.2, for losses over networks that training
    reaches from the trained one.
    """

    rates: tuple[float, ...] = RATES
    decay: float = 1.0
    epochs: float | int = 2.0
    clip: float | None = 1.0
    chain: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            message = f"HeatedWalk: rates are {self.rates}, expected numbers above 0"
            raise ValueError(message)
        if not self.epochs > 0:
            message = f"HeatedWalk: epochs is {self.epochs}, expected above 0"
            raise ValueError(message)

    def steps(self, fit: TrainingStream) -> int:
        """Steps of one stage."""
        return max(_FEWEST_STEPS, round(self.epochs * fit.num_samples / fit.samples_per_step))

    def walk(
        self, problem: Problem, fit: TrainingStream, store: Store | None = None
    ) -> Iterator[Member]:
        """Yield where each stage ends, the coldest first; with a store, go on where it was.

        Raises
        ------
        Diverged
            If training losses become NaN or infinite.
        """
        state = {**problem.params, **problem.buffers}
        for stage, rate in enumerate(self.rates):
            member = None if store is None else store.load(self.chain, stage, problem.device)
            if member is None:
                seed = ((self.seed * 1_009 + self.chain) * 1_000_003 + stage * 2) % 2**63
                rule = StageTraining(
                    self.steps(fit), rate, warm_cosine, adamw(self.decay), self.clip
                )
                stop = train_alone(problem, [Start(state, seed)], fit, rule)[0]
                member = Member(stop.params, self.chain, stage, stop.seen)
                if store is not None:
                    store.save(member)
            state = member.params
            yield member
