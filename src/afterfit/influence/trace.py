"""Scores that cost next to nothing: written down while the network trains, visit by visit."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed

from afterfit.influence.trace_file import read, write
from afterfit.influence.visits import (
    COLUMNS,
    added,
    require_labels,
    require_seen,
    visits,
    were_right,
)
from afterfit.problem.likelihood import Likelihood
from afterfit.problem.likelihood.targets import precise

_HELD_NUMBERS = 1 << 16  # outputs that are held back before they are added to the sums


@final
class TrainingTrace:
    """What ordinary training sees of each sample, summed over its visits.

    Of each sample it keeps sums, never a table of epochs: of its loss, its margin, the norm of the
    gradient with respect to the outputs, their squares, and how often it went from right to wrong.
    They stand on the device of the outputs, 72 bytes a sample (twice that once they were loaded or
    shared), and nothing waits for them until a score is asked for. A sample that is drawn twice
    counts twice; an augmented one counts as it was seen. Every score is large where the sample is
    suspicious.

    Parameters
    ----------
    num_samples
        Number N of samples of the training set; positions are between 0 and N - 1.
    likelihood
        What was trained: ``Categorical()`` for cross-entropy.

    Examples
    --------
    >>> import torch
    >>> from afterfit.influence import TrainingTrace
    >>> from afterfit.problem import Categorical
    >>> trace = TrainingTrace(3, Categorical())
    >>> for outputs in (torch.zeros(3, 2), torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])):
    ...     loss = trace.record(torch.arange(3), outputs, torch.tensor([0, 1, 1])).mean()
    >>> trace.mean_loss().argmax()
    tensor(2)

    References
    ----------
    Huang, Qu, Jia, Zhao (2019), "O2U-Net: a simple noisy label detection approach for deep neural
    networks", ICCV, for the mean loss; each other score names its own.
    """

    def __init__(self, num_samples: int, likelihood: Likelihood) -> None:
        if num_samples < 1:
            message = f"num_samples is {num_samples}, expected at least 1: len(train_set)"
            raise ValueError(message)
        self.num_samples = num_samples
        self.likelihood = likelihood
        self._table = torch.zeros(num_samples, len(COLUMNS), dtype=torch.float64)
        self._shared: Tensor | None = None  # what all processes have in common already
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kind: list[Any] = []
        self._checked = False

    # Recording -----------------------------------------------------------------------------------

    def record(
        self, index: Int[Tensor, " B"] | Sequence[int], outputs: Tensor, targets: Tensor
    ) -> Float[Tensor, " B"]:
        """Write down a training batch; return its losses in nats, to be trained on.

        Parameters
        ----------
        index
            Position of each sample in the training set.
        outputs, targets
            What the network said of the batch (logits), and what it should have said.

        Raises
        ------
        ValueError
            If positions, outputs and targets do not fit.
        """
        self.observe(index, outputs, targets)
        return self.likelihood.loss(outputs, targets)

    def observe(
        self, index: Int[Tensor, " B"] | Sequence[int], outputs: Tensor, targets: Tensor
    ) -> None:
        """Write down a training batch, as :meth:`record` does, where the loss is made elsewhere."""
        index = torch.as_tensor(index)
        self._require_fitting(index, outputs, targets)
        batch = index.clone(), outputs.detach().clone(), targets.detach().clone()
        kind = [(column.dtype, column.device, column.shape[1:]) for column in batch]
        if kind != self._kind:
            self._settled()
        self._held.append(batch)
        self._kind = kind
        if sum(held.numel() for _, held, _ in self._held) >= _HELD_NUMBERS:
            self._settled()

    def _settled(self) -> Tensor:
        """Sums with the visits that were held back: many at once take hardly longer than a few."""
        held, self._held = self._held, []
        if not held:
            return self._table
        index, outputs, targets = (torch.cat(column) for column in zip(*held, strict=True))
        table = self._on(outputs.device)
        index, order = index.to(outputs.device, non_blocking=True).long().sort(stable=True)
        last = were_right(table.index_select(0, index))
        rows = visits(self.likelihood, index, outputs[order], targets[order], last)
        return table.index_add_(0, index, rows)

    def _require_fitting(self, index: Tensor, outputs: Tensor, targets: Tensor) -> None:
        if index.ndim != 1 or not len(index) == len(outputs) == len(targets):
            message = (
                f"positions of shape {tuple(index.shape)}, outputs of shape "
                f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}, expected one "
                "position and one target for each row of the outputs"
            )
            raise ValueError(message)
        if not len(index):
            return
        # To look at values on another device would wait for it: there only the first batch is.
        if not self._checked or index.device.type == "cpu":
            self._require_positions(index)
        if not self._checked or targets.device.type == "cpu":
            self.likelihood.check(outputs.detach(), targets)
        self._checked = True

    def _require_positions(self, index: Tensor) -> None:
        low, high = (int(end) for end in index.aminmax())
        if low < 0 or high >= self.num_samples:
            message = (
                f"positions range from {low} to {high}, expected 0 to {self.num_samples - 1}: "
                "give TrainingTrace the length of the data set that with_positions wraps"
            )
            raise ValueError(message)

    def _on(self, device: torch.device) -> Tensor:
        self._table = self._table.to(device, precise(device))
        if self._shared is not None:
            self._shared = self._shared.to(device, precise(device))
        return self._table

    # Scores --------------------------------------------------------------------------------------

    @property
    def seen(self) -> Int[Tensor, " N"]:
        """How often each sample was seen."""
        return self._column("seen").long()

    @property
    def skipped(self) -> Int[Tensor, " N"]:
        """How often its loss was not finite; such visits are left out of all scores."""
        return self._column("skipped").long()

    def mean_loss(self) -> Float[Tensor, " N"]:
        """Mean loss in nats over all visits: what the network was slow to learn, or never did."""
        return self._mean("loss")

    def loss_stderr(self) -> Float[Tensor, " N"]:
        """Standard error of the mean loss, as if visits were independent.

        They are not: as the network learns the loss falls, and that is in their spread as well.

        Raises
        ------
        ValueError
            If a sample was seen fewer than two times.
        """
        variance = self._variance("loss")
        return (variance / self._column("seen")).sqrt()

    def aum(self) -> Float[Tensor, " N"]:
        """Minus the area under the margin: the mean of largest other logit minus the given one.

        References
        ----------
        Pleiss, Zhang, Elenberg, Weinberger (2020), "Identifying mislabeled data using the area
        under the margin ranking", NeurIPS, arXiv:2001.10528, eq. (2).
        """
        require_labels(self.likelihood, "aum")
        return -self._mean("margin")

    def forgetting(self) -> Float[Tensor, " N"]:
        """How often a sample went from right to wrong from one visit to the next.

        Right is a positive margin. One that was never right comes before all others, with one more
        than the largest count.

        References
        ----------
        Toneva, Sordoni, Tachet des Combes, Trischler, Bengio, Gordon (2019), "An empirical study of
        example forgetting during deep neural network learning", ICLR, arXiv:1812.05159.
        """
        require_labels(self.likelihood, "forgetting")
        self._require_seen(1)
        counts = self._column("forgotten")
        return torch.where(self._column("learned") == 0, counts.max() + 1, counts)

    def el2n(self) -> Float[Tensor, " N"]:
        """Mean error norm ``‖p - y‖₂``; meant for the first epochs.

        References
        ----------
        Paul, Ganguli, Dziugaite (2021), "Deep learning on a data diet", NeurIPS, arXiv:2107.07075,
        definition 2.3.
        """
        require_labels(self.likelihood, "el2n")
        return self._mean("gradient_norm")

    def gradient_variance(self) -> Float[Tensor, " N"]:
        """Variance over visits of ``‖∂loss/∂f‖₂``, the gradient with respect to the outputs.

        After VoG, which takes the gradient with respect to the pixels instead.

        Raises
        ------
        ValueError
            If a sample was seen fewer than two times.

        References
        ----------
        Agarwal, D'souza, Hooker (2022), "Estimating example difficulty using variance of
        gradients", CVPR, arXiv:2008.11600.
        """
        return self._variance("gradient_norm")

    def _column(self, name: str) -> Float[Tensor, " N"]:
        return self._settled()[:, COLUMNS.index(name)].cpu().double()

    def _mean(self, name: str) -> Float[Tensor, " N"]:
        self._require_seen(1)
        return self._column(name) / self._column("seen")

    def _variance(self, name: str) -> Float[Tensor, " N"]:
        self._require_seen(2)
        seen, total = self._column("seen"), self._column(name)
        spread = self._column(f"squared_{name}") - total.square() / seen
        return spread.clamp_min(0) / (seen - 1)

    def _require_seen(self, times: int) -> None:
        require_seen(self.seen, int(self.skipped.sum()), times)

    # Putting together, keeping -------------------------------------------------------------------

    def subset(self, index: Int[Tensor, " K"] | Bool[Tensor, " N"]) -> "TrainingTrace":
        """Only the samples at these positions, in the order given."""
        positions = torch.arange(self.num_samples)[index.cpu()]
        chosen = TrainingTrace(len(positions), self.likelihood)
        chosen._table = self._settled().cpu()[positions]
        return chosen

    @staticmethod
    def merged(traces: Sequence["TrainingTrace"]) -> "TrainingTrace":
        """Bring together what several processes, or stretches of training, have recorded.

        Sums add up. Forgetting is counted between visits that one trace has seen.

        Raises
        ------
        ValueError
            If there are none, or they are of different data or likelihoods.
        """
        kinds = {(trace.num_samples, repr(trace.likelihood)) for trace in traces}
        if len(kinds) != 1:
            message = f"the traces are {sorted(kinds)}, expected one or more of the same kind"
            raise ValueError(message)
        whole = TrainingTrace(traces[0].num_samples, traces[0].likelihood)
        whole._table = added([trace._settled().cpu() for trace in traces])
        shared = [trace._shared.cpu() for trace in traces if trace._shared is not None]
        whole._shared = added(shared) if shared else None
        return whole

    def all_reduce(self) -> None:
        """Share with all processes of ``torch.distributed`` what each has seen since the last time.

        Call it in every process, at the end of each epoch: samples move between processes from
        epoch to epoch, and forgetting is counted between visits that are known here. Without
        process groups it does nothing. What was loaded is taken as shared.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        table = self._settled()
        shared = torch.zeros_like(table) if self._shared is None else self._shared
        own = table - shared
        if "nccl" in distributed.get_backend():
            own = own.cuda()
        distributed.all_reduce(own)
        self._table = added([shared, own.to(shared.device)])
        self._shared = self._table.clone()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that was recorded, a column of N numbers for each name."""
        columns = self._settled().double().cpu().unbind(1)
        return {n: column.clone() for n, column in zip(COLUMNS, columns, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises
        ------
        ValueError
            If it is no record, or one of another number of samples.
        """
        shapes = {tuple(state[name].shape) if name in state else None for name in COLUMNS}
        if shapes != {(self.num_samples,)} or len(state) != len(COLUMNS):
            found = {name: tuple(column.shape) for name, column in state.items()}
            message = (
                f"the state holds {found}, expected {len(COLUMNS)} columns of {self.num_samples} "
                "numbers: it is no record of this data set"
            )
            raise ValueError(message)
        self._held = []
        self._table = torch.stack([state[name].cpu().double() for name in COLUMNS], dim=1)
        self._shared = self._table.clone()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the record as safetensors, to a temporary name that is then renamed."""
        write(path, self.state_dict(), self.likelihood)

    @staticmethod
    def load(path: str | PathLike[str], likelihood: Likelihood | None = None) -> "TrainingTrace":
        """Read a record; recording can go on from there.

        Parameters
        ----------
        likelihood
            Needed only where it is the user's own (``PerSample``), which no file can hold.

        Raises
        ------
        ValueError
            If the file is no trace, or of another likelihood.
        """
        state, found = read(path, likelihood)
        trace = TrainingTrace(len(state["seen"]), found)
        trace.load_state_dict(state)
        return trace
