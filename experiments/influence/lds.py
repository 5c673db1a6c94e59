"""How well each method foretells retraining: linear datamodeling scores with intervals and ceiling.

Three settings (settings.py), 100 half-subsets × 3 seeds each. Dampings, and the learning rate of one GEX,
are chosen on the first 40 subsets and 150 queries; the table is of the other 60 subsets and 150 queries. Times are CPU seconds of one thread after the training,
for all 300 queries.

    python experiments/influence/lds.py truth mlp --data DATA        # 300 retrainings, kept beside the results
    python experiments/influence/lds.py scores mlp --data DATA       # all of methods.py; results/lds-mlp.csv
    python experiments/influence/lds.py table                        # the table of NOTES.md and docs/choose.md
"""

import argparse
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from methods import METHODS, PARENT, TUNED, Case, Method, Tuned, case_of, gauss_newton, retrain
from safetensors.torch import load_file, save_file
from settings import SETTINGS
from torch import Generator, Tensor

from afterfit.evaluate import (
    Retrainings,
    drawn_subsets,
    linear_datamodeling_difference,
    linear_datamodeling_interval,
    linear_datamodeling_score,
    truth_ceiling,
)
from afterfit.workflows.retraining import load_retrainings, retrain_on, save_retrainings

RESULTS = Path(__file__).parent / "results"
SUBSETS, SEEDS, RESAMPLES = 100, (1000, 1001, 1002), 200
VALIDATION = slice(0, 40), slice(0, 150)  # subsets, queries
TEST = slice(40, None), slice(150, None)


# The three steps ----------------------------------------------------------------------------------


def part_of(truth: Retrainings, part: tuple[slice, slice]) -> Retrainings:
    rows, queries = part
    return Retrainings(
        truth.kept[rows], truth.losses[rows, :, queries], truth.correct[rows, :, queries]
    )


def make_truth(name: str, data: Path) -> None:
    start = time.process_time()
    setting = SETTINGS[name](data)
    case = Case(setting, setting.network(), ())
    kept = drawn_subsets(len(setting.targets), SUBSETS, Generator().manual_seed(1))
    truth = retrain_on(partial(retrain, setting), case.train, case.query, kept, SEEDS)
    save_retrainings(RESULTS / f"lds-{name}.safetensors", truth)
    print(f"{name}: {SUBSETS} × {len(SEEDS)} trainings, {time.process_time() - start:.0f} CPU s")


def best(tuned: Tuned, case: Case, truth: Retrainings) -> float:
    """The setting that foretells the validation part best."""
    method, grid = tuned
    values = {}
    for setting in grid:
        asked = method(setting, case)[VALIDATION[1]]
        score = linear_datamodeling_score(asked, part_of(truth, VALIDATION))
        values[setting] = float(score.nanmean())
    print("  validation:", {key: round(value, 3) for key, value in values.items()}, flush=True)
    return max(grid, key=lambda setting: values[setting])


def timed(method: Method, case: Case) -> tuple[Tensor, float]:
    """Scores, and the CPU seconds from nothing."""
    gauss_newton.cache_clear()
    start = time.process_time()
    return method(case), time.process_time() - start


def make_scores(name: str, data: Path, only: list[str], skip: list[str]) -> None:
    """Score the methods whose names hold a part asked for; the rows of others stay as they are."""
    truth = load_retrainings(RESULTS / f"lds-{name}.safetensors")
    case = case_of(SETTINGS[name](data))
    timed(METHODS["gradient dot"], case)  # imports and first allocations belong to nobody
    titles = [title for title in (*TUNED, *METHODS) if any(part in title for part in only)]
    titles = [title for title in titles if not any(part in title for part in skip)]
    chosen: dict[str, float] = {}
    for title in titles:
        if title in TUNED:  # all searches before all times: inverses are shared between them
            try:
                chosen[title] = best(TUNED[title], case, truth)
            except Exception as error:  # a peer that does not run here is told, and left out
                print(f"{name}: {title} does not run: {told(error)}", flush=True)
    for title in titles:
        if title in TUNED and title not in chosen:
            continue
        method = partial(TUNED[title][0], chosen[title]) if title in chosen else METHODS[title]
        try:
            scores, seconds = timed(method, case)
        except Exception as error:
            print(f"{name}: {title} does not run: {told(error)}", flush=True)
            continue
        keep_row(name, part_of(truth, TEST), title, scores[TEST[1]], seconds, chosen.get(title))


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def keep_row(
    name: str, test: Retrainings, title: str, scores: Tensor, seconds: float, chosen: float | None
) -> None:
    """Write the row of one method, and keep its scores so that others can be compared with them."""
    kept, path = RESULTS / f"scores-{name}.safetensors", RESULTS / f"lds-{name}.csv"
    found = load_file(kept) if kept.exists() else {}
    found[title] = scores.float().contiguous()
    save_file(found, kept)
    lds = linear_datamodeling_interval(scores, test, RESAMPLES, Generator().manual_seed(0))
    row: dict[str, str | float | None] = {
        "setting": name, "method": title, "lds": lds.value, "low": lds.low, "high": lds.high,
        "cpu_s": seconds, "chosen": chosen,
    }  # fmt: skip
    if PARENT in found:
        more = linear_datamodeling_difference(
            scores, found[PARENT], test, RESAMPLES, Generator().manual_seed(0)
        )
        row |= {"minus_ggn": more.value, "minus_low": more.low, "minus_high": more.high}
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    if not rows:
        rows = [{"setting": name, "method": "ceiling", "lds": truth_ceiling(test).highest}]
    rows = [old for old in rows if old["method"] != title] + [row]
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")
    print(
        {key: f"{value:.3f}" for key, value in row.items() if isinstance(value, float)},
        title,
        flush=True,
    )


def print_table() -> None:
    table = pd.concat([pd.read_csv(path) for path in sorted(RESULTS.glob("lds-*.csv"))])
    names = [name for name in SETTINGS if name in set(table["setting"])]
    print("| method | " + " | ".join(f"{name} | CPU s" for name in names) + " |")
    print("|---|" + "---|---|" * len(names))
    means = table.groupby("method")["lds"].agg(["count", "mean"])  # those of fewer settings last
    for method in means.sort_values(["count", "mean"], ascending=False).index:
        cells = []
        for name in names:
            row = table[(table["setting"] == name) & (table["method"] == method)]
            if row.empty:
                cells += ["-", "-"]
            elif method == "ceiling":
                cells += [f"{row['lds'].item():.3f}", ""]
            else:
                one = row.iloc[0]
                cells += [
                    f"{one['lds']:.3f} [{one['low']:.3f}, {one['high']:.3f}]",
                    f"{one['cpu_s']:.2f}",
                ]
        print(f"| {method} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("truth", "scores", "table"))
    parser.add_argument("setting", nargs="?", choices=list(SETTINGS), default="mlp")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of methods")
    parser.add_argument("--skip", nargs="+", default=[], help="parts of names that are left out")
    parser.add_argument("--data", type=Path, default=Path("data"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    if given.step == "table":
        print_table()
    elif given.step == "truth":
        make_truth(given.setting, given.data)
    else:
        make_scores(given.setting, given.data, given.only, given.skip)


if __name__ == "__main__":
    main()
