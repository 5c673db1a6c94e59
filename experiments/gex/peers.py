"""Scores of other libraries on the same network and samples: kronfluence, captum, cleanlab.

Each takes the trained network and returns one score a sample, large = suspicious. The network is copied first,
since kronfluence wraps the modules of what it is given.
"""

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset


def kronfluence_task():
    """Task of classification, as kronfluence's own examples write it."""
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            inputs, labels = batch
            logits = model(inputs)
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.softmax(-1), 1).flatten()
            return functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    return Classification()


class Kronfluence:
    """EK-FAC by kronfluence: factors are fitted once, then asked for self- and pairwise scores."""

    def __init__(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, folder: Path | None = None
    ):
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.utils.dataset import DataLoaderKwargs

        logging.disable(logging.WARNING)
        self.data = TensorDataset(inputs, labels)
        task = kronfluence_task()
        model = prepare_model(copy.deepcopy(network).eval(), task)
        self.analyzer = Analyzer(
            "peers",
            model,
            task,
            cpu=True,
            disable_tqdm=True,
            output_dir=str(folder or tempfile.mkdtemp()),
            disable_model_save=True,
        )
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))

    def fit(self) -> "Kronfluence":
        self.analyzer.fit_all_factors(
            "ekfac", self.data, per_device_batch_size=512, overwrite_output_dir=True
        )
        return self

    def self_scores(self) -> Tensor:
        self.analyzer.compute_self_scores(
            "self", "ekfac", self.data, per_device_train_batch_size=512, overwrite_output_dir=True
        )
        return self.analyzer.load_self_scores("self")["all_modules"].flatten().float()

    def scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.analyzer.compute_pairwise_scores(
            "pairs",
            "ekfac",
            TensorDataset(inputs, labels),
            self.data,
            per_device_query_batch_size=512,
            per_device_train_batch_size=512,
            overwrite_output_dir=True,
        )
        return self.analyzer.load_pairwise_scores("pairs")["all_modules"].float()


def captum_tracin(
    network: nn.Module,
    states: Sequence[dict[str, Tensor]],
    rates: Sequence[float],
    inputs: Tensor,
    labels: Tensor,
) -> Tensor:
    """Self-influence by captum's TracInCP over checkpoints."""
    from captum.influence import TracInCP

    def load(module: nn.Module, number: str) -> float:
        module.load_state_dict(states[int(number)])
        return rates[int(number)]

    model = copy.deepcopy(network).eval()
    tracin = TracInCP(
        model,
        TensorDataset(inputs, labels),
        [str(k) for k in range(len(states))],
        load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=128,
        sample_wise_grads_per_batch=True,
    )
    return tracin.self_influence().detach().float()


def cross_validated(
    make: Callable[[int], nn.Module],
    train: Callable[[nn.Module, Tensor, Tensor, int], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    seed: int,
    folds: int = 5,
) -> np.ndarray:
    """Out-of-sample class probabilities (N, C): each fold by a network that was trained on the others."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    found = np.zeros((len(inputs), num_classes))
    for fold in range(folds):
        held = order[fold::folds]
        rest = torch.cat([order[k::folds] for k in range(folds) if k != fold])
        network = train(make(100 + fold), inputs[rest], labels[rest], fold).eval()
        with torch.no_grad():
            rows = [network(batch).softmax(-1) for batch in inputs[held].split(500)]
        found[held.numpy()] = torch.cat(rows).double().numpy()
    return found


def cleanlab_scores(
    labels: Tensor, probabilities: np.ndarray, method: str = "self_confidence"
) -> Tensor:
    """Label quality by cleanlab on out-of-sample probabilities, turned so that large = suspicious."""
    from cleanlab.rank import get_label_quality_scores

    return 1 - torch.tensor(get_label_quality_scores(labels.numpy(), probabilities, method=method))
