"""Find wrong labels with a linear classifier on frozen features: the numbers that GEX has to beat.

    python experiments/gex/probe.py --data DATA --features CACHE [--size 2000]

The score of a sample is one minus the probability that a logistic regression, fitted on the other
four of five folds with the noisy labels, gives to the observed label (self-confidence: Northcutt et
al. 2021, Confident learning, JAIR). The test accuracy is that of a regression on all noisy labels,
against clean test labels.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from data import cifar10, cifar10n, noisy_ag_news
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from threadpoolctl import threadpool_limits

PENALTIES = (1.0, 0.1, 0.01, 0.001)
SCALINGS = {
    "standardized": StandardScaler,
    "unit length": Normalizer,
    "as they are": FunctionTransformer,
}


def classifier(scaling: str, c: float) -> Pipeline:
    """Logistic regression with penalty |w|^2 / (2 c) on scaled features."""
    return make_pipeline(SCALINGS[scaling](), LogisticRegression(C=c, max_iter=1000))


def self_confidence(
    features: np.ndarray, labels: np.ndarray, scaling: str, c: float, seed: int = 0
) -> np.ndarray:
    """One minus the held-out probability of the observed label, (N,); large is suspicious."""
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = classifier(scaling, c)
    chances = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    return 1 - chances[np.arange(len(labels)), labels]


def problems(data: Path, cache: Path, resolution: int) -> Iterator[tuple]:
    """Yield (name, features, noisy labels, clean labels, test features, test labels)."""
    images = np.load(cache / f"cifar10_efficientnet_lite0_{resolution}.npz")
    pictures, human = cifar10(data), cifar10n(data)
    for kind in ("aggre", "random1", "worse"):
        noisy, clean, test = (
            y.numpy() for y in (human[kind], pictures.labels, pictures.test_labels)
        )
        yield f"CIFAR-10N {kind}", images["train"], noisy, clean, images["test"], test

    texts = np.load(cache / "noisy_ag_news_minilm_l6.npz")
    news, votes = noisy_ag_news(data)
    noisy, clean, test = (y.numpy() for y in (votes, news.labels, news.test_labels))
    yield "NoisyAG-News", texts["train"], noisy, clean, texts["test"], test


def measure(problem: tuple, size: int, scaling: str, c: float) -> dict[str, float | str | int]:
    """One row of the table, on the first `size` samples."""
    name, features, noisy, clean, test, test_labels = problem
    features, noisy, clean = features[:size], noisy[:size], clean[:size]
    start = time.process_time()
    score = self_confidence(features, noisy, scaling, c)
    seconds = time.process_time() - start
    wrong = noisy != clean
    return {
        "data": name,
        "N": len(noisy),
        "wrong": wrong.mean(),
        "scaling": scaling,
        "C": c,
        "AUROC": roc_auc_score(wrong, score),
        "AP": average_precision_score(wrong, score),
        "test accuracy": classifier(scaling, c).fit(features, noisy).score(test, test_labels),
        "CPU s": seconds,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--features", type=Path, required=True, help="folder written by features.py"
    )
    parser.add_argument(
        "--size", type=int, nargs="+", default=[10000], help="first so many samples"
    )
    parser.add_argument("--scaling", nargs="+", default=["standardized"], choices=list(SCALINGS))
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    arguments = parser.parse_args()

    with threadpool_limits(1):
        table = pd.DataFrame(
            measure(problem, size, scaling, c)
            for problem in problems(arguments.data, arguments.features, arguments.resolution)
            for size in arguments.size
            if size <= len(problem[1]) or size == max(arguments.size)
            for scaling in arguments.scaling
            for c in PENALTIES
        )
    formats = {"wrong": 3, "AUROC": 3, "AP": 3, "test accuracy": 3, "CPU s": 1}
    print(table.round(formats).to_string(index=False))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
