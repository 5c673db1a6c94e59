"""May the default be believed? Cells without any noise, cells of other kinds of data, and its probabilities.

    python experiments/gex/trust.py --data DATA --features CACHE --out experiments/gex/results/trust

A cell is data-noise-rate-regime-seed, as in cells.py. Each trains its network, asks `analyze_labels` with its default
method, and compares what it says (probabilities, share with its interval, decisions) with the truth; beside it stand
only scores that cost nothing: loss and margin of the trained network, mean loss and AUM of the recorded training.
Cells that have a result are skipped; `--only digits` runs those whose name contains the text, `--again` those that
have a result, anew. `--table` prints all cells, those of cells.py too, and the summary, apart for the data on which
constants were chosen and for the rest. One CPU thread, so that CPU seconds compare.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cells
import data as sets
import networks
import numpy as np
import torch
from torch import Tensor, nn

from afterfit import Batches, Bernoulli, Categorical, Gaussian, Problem
from afterfit.influence import simple
from afterfit.problem.likelihood import Likelihood

DEVELOPED = (
    "digits",
    "cancer",
    "trec",
    "bank",
    "features",
    "friedman",
    "diabetes",
    "multilabel",
)
"""Data on which constants of the method were chosen; all others are unseen."""

UNUSUAL = ("random", "oneclass", "small")
"""Situations in which the default should say that it knows nothing; told apart from the summary."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A trained network with its data, and what is true of the labels."""

    problem: Problem
    batches: Batches
    augment: networks.Augment | None
    wrong: Tensor
    trained: networks.Trained


# Cells ----------------------------------------------------------------------------------------

CLEAN = ("digits", "cancer", "mnist", "trec", "agclean", "pneumonia", "bank", "bankf", "features")
BOTH = ("memorized", "early")


def names() -> list[str]:
    """All cells, the fast ones first."""
    digits = (("uniform", 0.1), ("uniform", 0.4), ("asymmetric", 0.2), ("instance", 0.3))
    mnist = (("uniform", 0.1), ("uniform", 0.4), ("instance", 0.3))
    listed = [f"{kind}-clean-0-{regime}-0" for kind in ("digits", "cancer") for regime in BOTH]
    listed += ["random-uniform-1-memorized-0", "oneclass-clean-0-memorized-0"]
    listed += ["small-uniform-0.2-memorized-0"]
    listed += [f"cancer-uniform-0.2-{regime}-{seed}" for regime in BOTH for seed in range(3)]
    listed += [f"digits-{kind}-{rate}-{regime}-0" for kind, rate in digits for regime in BOTH]
    listed += [f"{kind}-other-0.1-{r}-0" for kind in ("friedman", "diabetes") for r in REGRESSED]
    listed += [f"multilabel-turned-0.1-{regime}-0" for regime in REGRESSED]
    listed += [f"{kind}-clean-0-{regime}-0" for kind in CLEAN[2:] for regime in BOTH]
    listed += ["agclean-uniform-0.1-memorized-0"]
    listed += [f"trec-uniform-0.2-{regime}-0" for regime in BOTH]
    listed += [f"features-uniform-0.2-{regime}-0" for regime in BOTH]
    listed += [f"{kind}-uniform-0.1-{regime}-0" for kind in ("bank", "bankf") for regime in BOTH]
    listed += ["pneumonia-uniform-0.2-memorized-0", "pneumonia-uniform-0.1-early-0"]
    listed += [
        "pneumonia-uniform-0.4-memorized-0"
    ]  # of two classes: a fifth of the labels is wrong
    listed += ["pneumonia-uniform-0.1-small-0"]
    return listed + [f"mnist-{kind}-{rate}-memorized-0" for kind, rate in mnist]


def case(name: str, folder: Path, cache: Path) -> Case:
    """Load a cell's data, make its noise, and train its network."""
    kind, noisy, rate, regime, seed_text = name.split("-")
    seed = int(seed_text)
    if kind in ("friedman", "diabetes", "multilabel"):
        return regressed(kind, float(rate), regime, seed)
    if kind in ("digits", "cancer", "mnist", "trec"):
        task = cells.job(name, folder, cache)
    elif kind in UNUSUAL:
        task = unusual_job(name, folder, cache)
    else:
        task = job(kind, noisy, float(rate), regime, seed, folder, cache)
    trained, problem, batches = cells.start(task, seed)
    return Case(problem, batches, task.augment, task.wrong, trained)


def job(
    kind: str, noisy: str, rate: float, regime: str, seed: int, folder: Path, cache: Path
) -> cells.Job:
    """Classification on data that cells.py does not have, or has with other noise."""
    peak_rate, augment, convolutional = 0.1, networks.jitter(0.3), False
    hidden = (256,)
    if kind == "pneumonia":
        loaded = sets.pneumonia(folder, 1500 if regime == "small" else None)
        inputs, clean = loaded.inputs, loaded.labels
        augment, convolutional = networks.shift(2, "constant"), True
    elif kind == "bank":
        loaded = sets.banking77(folder, 3000)
        inputs, clean = sets.word_weights(loaded.inputs), loaded.labels
        augment = networks.jitter(0.1)
    elif kind == "bankf":
        loaded = sets.banking77(folder)
        inputs, clean = standardized(banking_features(loaded.inputs, cache)), loaded.labels
        peak_rate = 0.05
    elif kind == "agclean":
        with np.load(cache / "noisy_ag_news_minilm_l6.npz") as file:
            inputs = standardized(file["test"])
        clean = sets.noisy_ag_news(folder, 1, len(inputs))[0].test_labels
        peak_rate = 0.02
    elif kind == "features":
        with np.load(cache / "cifar10_efficientnet_lite0_224.npz") as file:
            inputs = standardized(file["train"])
        clean = sets.cifar10(folder, len(inputs), 1).labels
        peak_rate = 0.02
    else:
        raise ValueError(f"the data are {kind!r}, expected one of {(*CLEAN, *UNUSUAL)}")
    num_classes = int(clean.max()) + 1
    width = inputs[0].numel()
    make: Callable[[int], nn.Module] = lambda s: networks.mlp(width, num_classes, hidden, seed=s)  # noqa: E731
    if regime == "small":
        how = networks.Regime(6, None)
        make = lambda s: networks.cnn((1, 28, 28), num_classes, width=8, hidden=32, seed=s)  # noqa: E731
    else:
        how = cells.regimes(augment)[regime]
        if convolutional:
            make = lambda s: networks.cnn((1, 28, 28), num_classes, hidden=64, seed=s)  # noqa: E731
    labels, wrong = cells.with_noise(noisy, rate, inputs, clean, seed)
    return cells.Job(
        inputs, labels, wrong, make, how, how.augment, peak_rate=peak_rate, convolutional=convolutional
    )  # fmt: skip


def unusual_job(name: str, folder: Path, cache: Path) -> cells.Job:
    """Digits with all labels drawn at random, of one class only, or few of them."""
    kind, rest = name.split("-", 1)
    task = cells.job(f"digits-{rest}", folder, cache)
    if kind == "random":
        return task
    one_class = (task.labels == 3).nonzero()[:, 0]
    chosen = one_class if kind == "oneclass" else torch.arange(40)
    labels, wrong = task.labels[chosen], task.wrong[chosen]
    return cells.Job(task.inputs[chosen], labels, wrong, task.make, task.regime, task.augment)


def standardized(rows: np.ndarray) -> Tensor:
    inputs = torch.tensor(rows, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-6)


def banking_features(texts: Any, cache: Path) -> np.ndarray:
    """MiniLM features of all questions, from the cache or made for it."""
    path = cache / "bank_minilm.npz"
    if not path.exists():
        from features import text_features

        np.savez(path, x=text_features(32)(texts))
    with np.load(path) as file:
        return file["x"]


# Numbers, and several labels a sample -----------------------------------------------------------

REGRESSED = {"early": 0, "memorized": 1}
EPOCHS = {"friedman": (30, 300), "diabetes": (30, 300), "multilabel": (20, 200)}


def regressed(kind: str, rate: float, regime: str, seed: int) -> Case:
    """Numbers, of which some were exchanged, or several yes-or-no labels, of which one was turned."""
    load = {"friedman": sets.friedman, "diabetes": sets.diabetes}
    inputs, true = load.get(kind, sets.digit_properties)()
    spoil = turned if kind == "multilabel" else exchanged
    targets, wrong = spoil(true, rate, np.random.default_rng(seed))
    likelihood = Bernoulli() if kind == "multilabel" else Gaussian()
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(inputs.shape[1], 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, targets.shape[1]),
    )
    epochs = EPOCHS[kind][REGRESSED[regime]]
    trained = networks.train_adam(network, inputs, targets, likelihood, epochs, seed)
    problem = Problem.from_module(trained.network, likelihood)
    return Case(problem, Batches((inputs, targets), 512), None, wrong, trained)


def exchanged(targets: Tensor, rate: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Give a part of the samples the target of another sample, which may be a near one."""
    num = len(targets)
    chosen = rng.choice(num, int(rate * num), replace=False)
    others = (chosen + rng.integers(1, num, len(chosen))) % num
    spoiled = targets.clone()
    spoiled[chosen] = targets[others]
    return spoiled, (spoiled != targets).any(1)


def turned(targets: Tensor, rate: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turn one of the yes-or-no labels of a part of the samples."""
    num, num_outputs = targets.shape
    chosen = rng.choice(num, int(rate * num), replace=False)
    outputs = rng.integers(num_outputs, size=len(chosen))
    spoiled = targets.clone()
    spoiled[chosen, outputs] = 1 - targets[chosen, outputs]
    return spoiled, (spoiled != targets).any(1)


# Running --------------------------------------------------------------------------------------


def run(name: str, folder: Path, cache: Path) -> Result:
    """Train, ask the default, and measure it beside what costs nothing."""
    here = case(name, folder, cache)
    problem, batches, wrong = here.problem, here.batches, here.wrong
    analysis, seconds = cells.by_default(problem, batches, here.augment)
    scores = {
        "unlearning": analysis.scores.value,
        "loss": simple.loss_scores(problem, batches),
        "mean_loss": simple.mean_loss_scores(here.trained.losses),
    }
    if has_margin(problem.likelihood):
        scores["margin"] = simple.margin_scores(problem, batches)
        scores["aum"] = simple.aum_scores(here.trained.margins.T)
    costs = {"unlearning": seconds}
    return {
        "cell": name,
        "samples": len(wrong),
        "wrong": float(wrong.double().mean()),
        "parameters": problem.num_params,
        "train_accuracy": here.trained.train_accuracy,
        "train_seconds": here.trained.cpu_seconds,
        "evidence": cells.evidence(analysis, wrong, seconds),
        "scores": {
            label: cells.entry(values, wrong, costs.get(label, 0.0))
            for label, values in scores.items()
            if bool(wrong.any())
        },
    }


def has_margin(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, (Categorical, Bernoulli))


# Tables ---------------------------------------------------------------------------------------


def read(out: Path) -> list[Result]:
    """Results of this script, then those of cells.py that it does not have."""
    found: dict[str, Result] = {}
    for path in (*sorted(out.glob("*.json")), *sorted(out.parent.glob("*.json"))):
        result = json.loads(path.read_text())
        if "evidence" in result:
            found.setdefault(result["cell"], result)
    return list(found.values())


def table(out: Path) -> None:
    """Print a row for each cell, then what they say together."""
    results = read(out)
    print(
        f"{'cell':34s} {'N':>5s} {'acc':>6s} {'truth':>5s} {'share [low, high]':>20s} {'in':>3s}"
        f" {'flag':>5s} {'prec':>5s} {'rec':>5s} {'FDR.1':>5s} {'rec':>5s}"
        f" {'AP':>5s} {'loss':>5s} {'marg':>5s} {'trace':>5s} {'AUM':>5s}"
        f" {'s':>6s} {'train':>6s} {'mem':>4s} {'apart':>5s}  caution"
    )
    for result in results:
        print(row(result))
    kinds = {id(result): result["cell"].split("-")[0] for result in results}
    usual = [result for result in results if kinds[id(result)] not in UNUSUAL]
    developed = [result for result in usual if kinds[id(result)] in DEVELOPED]
    unseen = [result for result in usual if kinds[id(result)] not in DEVELOPED]
    for title, group in (
        (f"Data on which constants were chosen ({', '.join(DEVELOPED)})", developed),
        ("Unseen data", unseen),
        ("Together", usual),
    ):
        if group:
            print(f"\n{title}: {len(group)} cells")
            summary(group)
    print()
    for result in results:
        if kinds[id(result)] in UNUSUAL:
            print(f"Unusual, {result['cell']}: {said(result)}")


def said(result: Result) -> str:
    """What the default says in an unusual situation, and where that misses the truth."""
    found, share = result["evidence"], result["evidence"]["share"]
    if share is None:
        return f"ranked list only, {found['fallback']}"
    verdict = "covers" if covered(result) else "MISSES"
    return (
        f"{found['default']['flagged']} of {result['samples']} flagged, share [{share['low']:.3f}, "
        f"{share['high']:.3f}] {verdict} the true {result['wrong']:.3f}; {' '.join(found['cautions'])}"
    )


def row(result: Result) -> str:
    found, scores, number = result["evidence"], result["scores"], cells.number
    default, limited = found["default"] or {}, found["fdr"] or {}
    share = found["share"]
    interval, inside = "-", "-"
    if share is not None:
        interval = f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"
        inside = "yes" if covered(result) else "no"
    ap = {label: score["ap"] for label, score in scores.items()}
    flagged = default.get("flagged")
    caution = found["cautions"][0] if found["cautions"] else ""
    return (
        f"{result['cell']:34s} {result['samples']:5d} {result['train_accuracy']:6.3f}"
        f" {result['wrong']:5.3f} {interval:>20s} {inside:>3s} {number(flagged, 5, 0)}"
        f" {number(default.get('precision'), 5, 2)} {number(default.get('recall'), 5, 2)}"
        f" {number(limited.get('false_discovery'), 5, 2)} {number(limited.get('recall'), 5, 2)}"
        + "".join(
            f" {number(ap.get(label), 5, 3)}"
            for label in ("unlearning", "loss", "margin", "mean_loss", "aum")
        )
        + f" {found['seconds']:6.1f} {result['train_seconds']:6.1f}"
        f" {number(found['memory'], 4, 2)} {number(found['told_apart'], 5, 3)}"
        f"  {caution if len(caution) <= 60 else caution[:57] + '...'}"
    )


def covered(result: Result) -> bool:
    share = result["evidence"]["share"]
    return share["low"] <= result["wrong"] <= share["high"]


def summary(results: list[Result]) -> None:
    """Print how far flags, intervals and probabilities can be believed in some cells."""
    silent = [result for result in results if result["evidence"]["share"] is None]
    stated = [result for result in results if result["evidence"]["share"] is not None]
    clean = [result for result in stated if result["wrong"] == 0]
    noisy = [result for result in stated if result["wrong"] > 0]
    if silent:
        print(f"  ranked list only, in none of the rows below but recall: {listed(silent)}")
    if clean:
        many = [r for r in clean if r["evidence"]["default"]["flagged"] > 0.01 * r["samples"]]
        above = [r for r in clean if r["evidence"]["share"]["low"] > 0]
        print(f"  clean cells with more than 1 % flagged: {of(many, clean)}")
        print(f"  clean cells whose interval does not reach 0: {of(above, clean)}")
    if noisy:
        inside = [result for result in noisy if covered(result)]
        outside = [result for result in noisy if not covered(result)]
        rates = [result["evidence"]["fdr"]["false_discovery"] for result in noisy]
        print(
            f"  noisy cells whose interval covers the truth: {len(inside)} of {len(noisy)}"
            f"{'; not ' + listed(outside) if outside else ''}"
        )
        print(
            f"  true rate at FDR .1 in noisy cells: mean {np.mean(rates):.3f}, largest "
            f"{max(rates):.3f} ({noisy[int(np.argmax(rates))]['cell']}), above .1 in "
            f"{sum(rate > 0.1 for rate in rates)} of {len(rates)}"
        )
    uniform = [r for r in results if "-uniform-" in r["cell"] and r["wrong"] > 0]
    if uniform:
        at = {key: np.mean([recall(r, key) for r in uniform]) for key in ("fdr", "default")}
        print(
            f"  recall over {len(uniform)} cells of uniform noise: mean {at['fdr']:.3f} at FDR .1, "
            f"{at['default']:.3f} at the default"
        )
    if stated:
        reliability(stated)
    for rival in ("loss", "margin"):
        behind = [result for result in results if is_behind(result, rival)]
        compared = [result for result in results if rival in result["scores"]]
        print(f"  AP below the {rival} by more than one standard error: {of(behind, compared)}")


def reliability(results: list[Result]) -> None:
    """Print the expected calibration error, and stated beside true share in bins of probability."""
    tables = np.array(
        [
            [result["evidence"]["p_wrong"][key] for key in ("count", "sum", "wrong")]
            for result in results
        ],
        dtype=float,
    )
    count, total, wrong = tables.sum(0)
    each = np.abs(tables[:, 1] - tables[:, 2]).sum(1) / tables[:, 0].sum(1)
    error = np.abs(total - wrong).sum() / count.sum()
    worst = int(each.argmax())
    print(
        f"  expected calibration error: {error:.4f} over all samples; by cell mean {each.mean():.4f}, "
        f"largest {each[worst]:.4f} ({results[worst]['cell']})"
    )
    print(f"    {'p':>9s} {'samples':>8s} {'stated':>7s} {'wrong':>7s}")
    for place, (num, stated, true) in enumerate(zip(count, total, wrong, strict=True)):
        if num:
            span = f"{place / len(count):.1f}-{(place + 1) / len(count):.1f}"
            print(f"    {span:>9s} {num:8.0f} {stated / num:7.3f} {true / num:7.3f}")


def recall(result: Result, decision: str) -> float:
    """Recall of a decision; 0 where there is none."""
    found = result["evidence"][decision]
    return 0.0 if found is None else found["recall"]


def is_behind(result: Result, rival: str) -> bool:
    scores = result["scores"]
    if rival not in scores:
        return False
    own = scores["unlearning"]
    return own["ap"] < scores[rival]["ap"] - own["ap_stderr"]


def of(some: list[Result], every: list[Result]) -> str:
    return f"{len(some)} of {len(every)}{': ' + listed(some) if some else ''}"


def listed(results: list[Result]) -> str:
    return ", ".join(result["cell"] for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--features", type=Path, help="folder that features.py has filled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trust")
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true", help="anew, cells that have a result")
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
        result = run(name, options.data, options.features)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
        temporary.replace(path)
        print(f"{name} ({time.time() - begun:.0f} s)\n  {row(result)}", flush=True)


if __name__ == "__main__":
    main()
