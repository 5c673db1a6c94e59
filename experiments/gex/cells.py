"""Wrong labels in cells of (data, noise, regime, seed): the default beside every simple score and the peers.

    python experiments/gex/cells.py --data DATA --features CACHE --out experiments/gex/results

Cells that have a result are skipped, so the run can be stopped and taken up again; `--only digits` runs those
whose name contains the text, and `--again` runs the default alone, in cells that have a result. `--table` prints
what is there. One CPU thread, so that CPU seconds compare.

Each cell trains its network (networks.py), asks `analyze_labels` with its default method, which is `Unlearning`, and
writes AUC and average precision of every score with the CPU seconds that it cost beyond the training, and what the
default says of probabilities, share and decision. A score named `gex` stands in cells that ran while GEX with a search
for its rate was the default; it is kept, and not computed any more.
"""

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import data as sets
import networks
import noise
import numpy as np
import peers
import torch
from modality import dip
from torch import Tensor, nn

from afterfit import Batches, Categorical, Problem, TrainingStream, analyze_labels
from afterfit.evaluate import auc, average_precision, bootstrap, probability_cut
from afterfit.influence import baselines
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.projected import RandomProjection
from afterfit.influence.tracin import TracIn
from afterfit.problem import losses
from afterfit.workflows.labels import LabelAnalysis


@dataclass(frozen=True)
class Job:
    """What a cell trains on, and how."""

    inputs: Tensor
    labels: Tensor
    wrong: Tensor
    make: Callable[[int], nn.Module]
    regime: networks.Regime
    augment: networks.Augment | None
    peak_rate: float = 0.1
    convolutional: bool = True


NOISES = (("uniform", 0.1), ("uniform", 0.4), ("asymmetric", 0.2), ("instance", 0.3))
REGIMES = ("early", "trained", "memorized")


def names() -> list[str]:
    """All cells: data-noise-rate-regime-seed."""
    digits = [
        f"digits-{kind}-{rate}-{regime}-{seed}"
        for seed in range(3)
        for kind, rate in NOISES
        for regime in REGIMES
    ]
    mnist = [f"mnist-{kind}-{rate}-memorized-0" for kind, rate in NOISES]
    mnist += [
        "mnist-uniform-0.1-early-0",
        "mnist-asymmetric-0.2-trained-0",
        "mnist-uniform-0.2-trained-0",
    ]
    tables = [f"cancer-uniform-0.2-{regime}-{seed}" for regime in REGIMES for seed in range(3)]
    human = [
        f"features-{kind}-human-trained-{seed}"
        for kind in ("aggre", "random1", "worse")
        for seed in range(3)
    ]
    human += [f"agnews-human-0.2-trained-{seed}" for seed in range(3)]
    trec = [f"trec-uniform-0.2-{regime}-0" for regime in REGIMES]
    trec += [f"agbag-human-0.2-{regime}-0" for regime in REGIMES]
    cifar = [
        "cifar-uniform-0.2-trained-0",
        "cifar-aggre-human-trained-0",
        "cifar-worse-human-trained-0",
    ]
    return human + tables + digits[:12] + trec + mnist + cifar + digits[12:]


def job(name: str, folder: Path, cache: Path) -> Job:
    """Load a cell's data, make its noise, and choose its network."""
    kind, noisy, rate, regime, seed_text = name.split("-")
    seed = int(seed_text)
    if kind in ("features", "agnews"):
        return features_job(kind, noisy, folder, cache)
    if kind == "cifar":
        loaded = sets.cifar10(folder, 4000, 1000)
    elif kind == "mnist":
        loaded = sets.mnist(folder, 2000, 1000, seed)
    elif kind in ("trec", "agbag"):
        return words_job(kind, folder, float(rate), regime, seed)
    else:
        loaded = {"digits": sets.digits, "cancer": sets.breast_cancer}[kind]()
    inputs, clean = loaded.inputs, loaded.labels
    if rate == "human":
        labels = sets.cifar10n(folder, len(clean))[noisy]
        wrong = labels != clean
    else:
        labels, wrong = with_noise(noisy, float(rate), inputs, clean, seed)
    augment = {
        "digits": networks.shift(1, "constant"),
        "mnist": networks.shift(2, "constant"),
        "cifar": networks.chain(networks.shift(2), networks.flip),
        "cancer": networks.jitter(0.3),
    }[kind]
    make = {
        "digits": lambda s: networks.cnn((1, 8, 8), 10, kernel=3, seed=s),
        "mnist": lambda s: networks.cnn((1, 28, 28), 10, hidden=64, seed=s),
        "cifar": lambda s: networks.resnet((3, 32, 32), 10, seed=s),
        "cancer": lambda s: networks.mlp(30, 2, (64, 64), seed=s),
    }[kind]
    return Job(inputs, labels, wrong, make, regimes(augment)[regime], fit_augment(regime, augment))


def regimes(augment: networks.Augment) -> dict[str, networks.Regime]:
    return {
        "early": networks.early(augment),
        "trained": networks.trained(augment),
        "memorized": networks.memorized(),
    }


def fit_augment(regime: str, augment: networks.Augment) -> networks.Augment | None:
    """Members train as the network did: a memorized one without augmentation."""
    return None if regime == "memorized" else augment


def features_job(kind: str, noisy: str, folder: Path, cache: Path) -> Job:
    """A hidden layer on frozen features of a pretrained backbone, trained on human labels."""
    if kind == "features":
        with np.load(cache / "cifar10_efficientnet_lite0_224.npz") as file:
            rows = file["train"]
        clean = sets.cifar10(folder, 4000, 1).labels
        labels = sets.cifar10n(folder, 4000)[noisy]
    else:
        with np.load(cache / "noisy_ag_news_minilm_l6.npz") as file:
            rows = file["train"]
        loaded, labels = sets.noisy_ag_news(folder)
        clean = loaded.labels
    inputs = torch.tensor(rows, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-6)
    width, num_classes = inputs.shape[1], int(clean.max()) + 1
    return Job(
        inputs,
        labels,
        labels != clean,
        lambda s: networks.mlp(width, num_classes, (256,), seed=s),
        networks.Regime(20, None),
        None,
        peak_rate=0.02,
        convolutional=False,
    )


def words_job(kind: str, folder: Path, rate: float, regime: str, seed: int) -> Job:
    """A bag of embeddings, on questions with drawn noise or on news with human noise."""
    if kind == "trec":
        loaded, num_classes = sets.trec(folder), 6
        labels, wrong = noise.uniform(loaded.labels, rate, 6, np.random.default_rng(seed))
    else:
        loaded, labels = sets.noisy_ag_news(folder)
        wrong, num_classes = labels != loaded.labels, 4
    words = sets.tokens(loaded.inputs, sets.vocabulary(loaded.inputs, 2000), 24)
    augment = networks.drop_words(0.1)
    return Job(
        words,
        labels,
        wrong,
        lambda s: networks.bag_of_words(2001, num_classes, seed=s),
        regimes(augment)[regime],
        fit_augment(regime, augment),
        peak_rate=0.2,
        convolutional=False,
    )


def with_noise(
    kind: str, rate: float, inputs: Tensor, clean: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Labels of a kind of noise, which may be `clean`, and which of them are wrong."""
    rng, num_classes = np.random.default_rng(seed), int(clean.max()) + 1
    if kind == "clean":
        return clean.clone(), torch.zeros(len(clean), dtype=torch.bool)
    if kind == "uniform":
        return noise.uniform(clean, rate, num_classes, rng)
    if kind == "asymmetric":
        return noise.asymmetric(clean, rate, noise.next_class(num_classes), rng)
    return noise.instance_dependent(clean, inputs, rate, num_classes, rng)


def run(name: str, folder: Path, cache: Path) -> dict:
    """Train, score, and measure every score."""
    task, seed = job(name, folder, cache), int(name.rsplit("-", 1)[1])

    def train(network: nn.Module, inputs: Tensor, labels: Tensor, number: int) -> nn.Module:
        plain = networks.Regime(task.regime.epochs, task.regime.augment)
        return networks.train(network, inputs, labels, plain, number, task.peak_rate).network

    trained, problem, batches = start(task, seed)
    seconds: dict[str, float] = {}
    scores: dict[str, Tensor] = {}

    def measure(label: str, score: Callable[[], Tensor]) -> None:
        start = time.process_time()
        scores[label] = score()
        seconds[label] = time.process_time() - start

    analysis, seconds_default = by_default(problem, batches, task.augment)
    measure("loss", lambda: baselines.loss_scores(problem, batches))
    measure("margin", lambda: baselines.margin_scores(problem, batches))
    measure("entropy", lambda: baselines.entropy_scores(problem, batches))
    measure("gradient_norm", lambda: baselines.gradient_norm_scores(problem, batches))
    measure(
        "random_projection", lambda: RandomProjection(20, seed).fit(problem, batches).self_scores()
    )
    states = [
        {n: c.state[n] for n in (*problem.params, *problem.buffers)} for c in trained.checkpoints
    ]
    rates = [c.learning_rate + 1e-12 for c in trained.checkpoints]
    if (
        not task.convolutional
    ):  # captum has no embedding layers; elsewhere it is the same score, and faster
        measure("tracin", lambda: TracIn(states, rates).fit(problem, batches).self_scores())
    measure("arnoldi", lambda: ArnoldiInfluence().fit(problem, batches).self_scores())
    measure("knn", lambda: baselines.knn_scores(task.inputs.flatten(1).float(), task.labels, 10))
    scores["aum"], seconds["aum"] = baselines.aum_scores(trained.margins.T), 0.0
    scores["forgetting"], seconds["forgetting"] = (
        baselines.forgetting_scores(trained.margins.T > 0).float(),
        0.0,
    )
    young = max(1, min(10, task.regime.epochs // 4))

    def el2n() -> Tensor:
        short = networks.Regime(young, task.regime.augment)
        nets = [
            networks.train(task.make(50 + k), task.inputs, task.labels, short, k, task.peak_rate)
            for k in range(3)
        ]
        return baselines.el2n_scores(
            [Problem.from_module(n.network, Categorical()) for n in nets], batches
        )

    measure("el2n", el2n)
    num_classes = int(task.labels.max()) + 1
    measure(
        "cleanlab",
        lambda: peers.cleanlab_scores(
            task.labels,
            peers.cross_validated(task.make, train, task.inputs, task.labels, num_classes, seed),
        ),
    )
    measure(
        "kronfluence",
        lambda: peers.Kronfluence(trained.network, task.inputs, task.labels).fit().self_scores(),
    )
    if task.convolutional:
        captum_states = [c.state for c in trained.checkpoints]
        measure(
            "captum",
            lambda: peers.captum_tracin(
                trained.network, captum_states, rates, task.inputs, task.labels
            ),
        )

    result = {
        "cell": name,
        "samples": len(task.labels),
        "wrong": float(task.wrong.float().mean()),
        "parameters": problem.num_params,
        "train_accuracy": trained.train_accuracy,
        "train_seconds": trained.cpu_seconds,
        "median_loss": float(losses(problem, batches).median()),
        "dip": {label: dip_of(scores[label]) for label in ("gradient_norm", "kronfluence")},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "scores": {
            label: entry(values, task.wrong, seconds.get(label, 0.0))
            for label, values in scores.items()
        },
    }
    return with_default(result, analysis, seconds_default, task.wrong)


def start(task: Job, seed: int) -> tuple[networks.Trained, Problem, Batches]:
    """Train the network of a cell."""
    trained = networks.train(
        task.make(seed), task.inputs, task.labels, task.regime, seed, task.peak_rate
    )
    problem = Problem.from_module(trained.network, Categorical())
    return trained, problem, Batches((task.inputs, task.labels), 512)


def by_default(
    problem: Problem, batches: Batches, augment: networks.Augment | None
) -> tuple[LabelAnalysis, float]:
    """What the default method says of the labels, and its CPU seconds."""
    begun = time.process_time()
    analysis = analyze_labels(problem, batches, fit=TrainingStream(batches, 128, augment))
    return analysis, time.process_time() - begun


def again(previous: dict[str, Any], folder: Path, cache: Path) -> dict[str, Any]:
    """The cell with the default as it is now; what the other scores gave stays.

    `retrained` says whether the network came out as it was, and how long it took now.
    """
    name = previous["cell"]
    task, seed = job(name, folder, cache), int(name.rsplit("-", 1)[1])
    trained, problem, batches = start(task, seed)
    found = {"train_accuracy": trained.train_accuracy, "train_seconds": trained.cpu_seconds}
    analysis, seconds = by_default(problem, batches, task.augment)
    return with_default({**previous, "retrained": found}, analysis, seconds, task.wrong)


GONE = ("learning_rate", "search", "reliability", "otsu", "bic_gain_gex")
"""What results of the former default hold beside the score `gex`."""


def with_default(
    result: dict[str, Any], analysis: LabelAnalysis, seconds: float, wrong: Tensor
) -> dict[str, Any]:
    """Put what the default found into the result of a cell."""
    kept = {
        label: found
        for label, found in result["scores"].items()
        if label not in ("published_moment", "mean_seen")
    }
    return {
        **{key: value for key, value in result.items() if key not in GONE},
        "evidence": evidence(analysis, wrong, seconds),
        "scores": {**kept, "unlearning": entry(analysis.scores.value, wrong, seconds)},
    }


NUM_BINS = 10
"""Of probabilities, equally wide, for reliability."""


def evidence(analysis: LabelAnalysis, wrong: Tensor, seconds: float) -> dict[str, Any]:
    """Probabilities, share and decisions beside the truth; None where the default knows none."""
    found = analysis.evidence
    assert found is not None
    stated: dict[str, Any] = {"p_wrong": None, "share": None, "default": None, "fdr": None}
    if found.share is not None:
        p = found.p_wrong.cpu().double()
        limited = probability_cut(p, found.scores.value, 0.1)
        stated = {
            "p_wrong": histogram(p, wrong),
            "share": asdict(found.share),
            "default": decided(analysis.decision().is_issue, wrong),
            "fdr": decided(limited.is_issue, wrong),
        }
    return {
        **stated,
        "memory": known(found.memory),
        "told_apart": known(found.told_apart),
        "reliability": known(found.reliability),
        "seconds": seconds,
        "fallback": found.fallback,
        "cautions": list(analysis.cautions),
    }


def histogram(p: Tensor, wrong: Tensor) -> dict[str, list[float]]:
    """Samples, sum of the probabilities and number of wrong labels in bins of probability."""
    bins = (p * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    return {
        "count": bins.bincount(minlength=NUM_BINS).tolist(),
        "sum": bins.bincount(p, NUM_BINS).tolist(),
        "wrong": bins.bincount(wrong.double(), NUM_BINS).int().tolist(),
    }


def decided(flagged: Tensor, wrong: Tensor) -> dict[str, float | None]:
    """How good a decision is; `false_discovery` is the share of right labels among the flagged, 0 for none."""
    flagged = flagged.cpu()
    num, hits = int(flagged.sum()), int((flagged & wrong).sum())
    return {
        "flagged": num,
        "precision": hits / num if num else None,
        "recall": hits / int(wrong.sum()) if bool(wrong.any()) else None,
        "false_discovery": 1 - hits / num if num else 0.0,
    }


def known(value: float) -> float | None:
    """The number, or None for NaN, which JSON does not have."""
    return value if math.isfinite(value) else None


def dip_of(scores: Tensor) -> float:
    """p of the dip test on the logarithm."""
    generator = torch.Generator().manual_seed(0)
    return dip(scores.double().clamp_min(1e-12).log(), generator, 200).pvalue


def entry(values: Tensor, wrong: Tensor, seconds: float) -> dict[str, float]:
    """How well a score finds the wrong labels, and what it cost."""
    usable = torch.nan_to_num(values.double(), nan=0.0, posinf=1e30)
    error = bootstrap(average_precision, usable, wrong, 200, torch.Generator().manual_seed(1))
    return {
        "auc": auc(usable, wrong),
        "ap": average_precision(usable, wrong),
        "ap_stderr": error.stderr,
        "seconds": seconds,
    }


BILINEAR = ("gradient_norm", "random_projection", "tracin", "arnoldi", "kronfluence", "captum")


def table(out: Path) -> None:
    """Print a row for each cell: AP of the default and of its rivals; losses within one standard error."""
    columns = ("loss", "margin", "bilin", "cleanl", "EL2N", "AUM", "oldGEX")
    print(
        f"{'cell':34s} {'acc':>5s} {'AP':>6s} {'±':>5s}"
        + "".join(f" {column:>6s}" for column in columns)
        + f" {'s':>6s} {'s oldG':>6s} {'s clean':>7s}  verdict"
    )
    lost: dict[str, list[str]] = {"loss": [], "margin": [], "bilinear": [], "cleanlab": []}
    ratios, shown, waiting = [], 0, []
    for path in sorted(out.glob("*.json")):
        found = json.loads(path.read_text())
        scores = found["scores"]
        if "unlearning" not in scores:
            waiting.append(found["cell"])
            continue
        shown += 1
        ap = {label: score["ap"] for label, score in scores.items()}
        own, error = ap["unlearning"], scores["unlearning"]["ap_stderr"]
        ap["bilinear"] = max(ap[label] for label in BILINEAR if label in ap)
        behind = [label for label in lost if label in ap and own < ap[label] - error]
        for label in behind:
            lost[label].append(found["cell"])
        seconds = {label: score["seconds"] for label, score in scores.items()}
        if "gex" in seconds:
            ratios.append(seconds["unlearning"] / seconds["gex"])
        rivals = ("loss", "margin", "bilinear", "cleanlab", "el2n", "aum", "gex")
        print(
            f"{found['cell']:34s} {found['train_accuracy']:5.3f} {own:6.3f} {error:5.3f}"
            + "".join(f" {number(ap.get(label), 6, 3)}" for label in rivals)
            + f" {seconds['unlearning']:6.1f} {number(seconds.get('gex'), 6, 1)}"
            f" {number(seconds.get('cleanlab'), 7, 1)}"
            f"  {'lost to ' + ', '.join(behind) if behind else 'ok'}"
        )
    print(f"\n{shown} cells")
    for label, names_lost in lost.items():
        print(
            f"lost to {label}: {len(names_lost)}{': ' if names_lost else ''}{', '.join(names_lost)}"
        )
    if ratios:
        print(
            f"CPU seconds over those of the old GEX: median {np.median(ratios):.2f}, largest "
            f"{max(ratios):.2f} (measured at different times)"
        )
    if waiting:
        print(f"{len(waiting)} cells wait for --again: {', '.join(waiting)}")


def number(value: float | None, width: int, digits: int) -> str:
    """A number in a column, or a dash."""
    return f"{'-':>{width}s}" if value is None else f"{value:{width}.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--features", type=Path, help="folder that features.py has filled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--again", action="store_true", help="the default alone, in cells that have a result"
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table(options.out)
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names():
        path = options.out / f"{name}.json"
        if options.only not in name or path.exists() != options.again:
            continue
        begun = time.time()
        if options.again:
            result = again(json.loads(path.read_text()), options.data, options.features)
        else:
            result = run(name, options.data, options.features)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(path)
        brief = {k: round(v["ap"], 3) for k, v in result["scores"].items()}
        now = result.get("retrained", result)["train_accuracy"]
        if abs(now - result["train_accuracy"]) > 1e-6:
            print(f"{name}: train accuracy {now}, was {result['train_accuracy']}: run it anew")
        print(f"{name} ({time.time() - begun:.0f} s) {brief}", flush=True)


if __name__ == "__main__":
    main()
