"""Features of the training samples on disk: a new query is one product with them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from afterfit.curvature.sample_gradients import Factored, inner, squared_norms
from afterfit.influence.base import BlockInfluence, Influence, Repeats
from afterfit.problem.data import Batches
from afterfit.problem.persample import flatten

_SEPARATOR = "|"


def store_features(
    influence: BlockInfluence, folder: Path | str, dtype: torch.dtype = torch.float32
) -> "StoredInfluence":
    """Write the features of all training samples to a folder, a safetensors file for each chunk.

    Layers keep their factors where these are smaller than gradients. Half precision halves the
    folder; a product with it has a relative error of about 1e-3 of the two lengths (1e-2 in
    bfloat16, which cannot overflow).

    Parameters
    ----------
    folder
        Made if it is missing; files of an earlier call are replaced.
    dtype
        ``torch.float32``, ``torch.float16``, ``torch.bfloat16`` or ``torch.float64``.

    Raises
    ------
    ValueError
        If a number does not fit the precision.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    for old in where.glob("features-*.safetensors"):
        old.unlink()
    note = {"seal": seal(influence), "num_samples": str(influence.train.num_samples)}
    for i, (index, parts) in enumerate(influence.train_features()):
        tensors = {"index": index.cpu()}
        for unit, blocks in enumerate(parts):
            for name, block in blocks.items():
                small = block.smallest()
                for side in ("inputs", "outputs"):
                    key = _SEPARATOR.join((str(unit), side, name))
                    tensors[key] = _converted(getattr(small, side), dtype)
        path = where / f"features-{i:06d}.safetensors"
        save_file(tensors, path.with_suffix(".part"), metadata=note)
        path.with_suffix(".part").replace(path)
    (where / "features.json").write_text(json.dumps(note))
    return load_features(influence, where)


def load_features(influence: BlockInfluence, folder: Path | str) -> "StoredInfluence":
    """Use features that were stored before.

    Raises
    ------
    ValueError
        If there are none, or they are of another network, other data or another method.
    """
    where = Path(folder)
    path = where / "features.json"
    if not path.exists():
        message = f"{where} holds no stored features, expected a folder made by store_features"
        raise ValueError(message)
    found = json.loads(path.read_text())["seal"]
    if found != seal(influence):
        message = (
            f"the features in {where} are of another network, other training data or another "
            f"method ({found}), expected {seal(influence)}; store them again"
        )
        raise ValueError(message)
    return StoredInfluence(influence, where)


def seal(influence: BlockInfluence) -> str:
    """Name of the method, hash of the training data, and sums of the parameters."""
    flat = flatten(influence.problem.params).double()
    sums = f"{float(flat.sum()):.12e} {float(flat.square().sum()):.12e}"
    return f"{type(influence).__name__} {influence.train.fingerprint()} {sums}"


@final
@dataclass(frozen=True)
class StoredInfluence(Influence):
    """Influence whose training features are read from files, one chunk at a time.

    Attributes
    ----------
    influence
        What the features of queries come from.
    folder
        Where the files are.
    """

    influence: BlockInfluence
    folder: Path

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Inner product of the features of each query and each training sample."""
        like = next(iter(self.influence.problem.params.values()))
        result = like.new_empty(query.num_samples, self.influence.train.num_samples)
        for rows, asked in self.influence.query_features(query):
            for columns, own in self._chunks():
                terms = (inner(q, n) for q, n in zip(asked, own, strict=True))
                result[rows[:, None], columns] = torch.stack(list(terms)).sum(0)
        return result

    def self_scores(self) -> Float[Tensor, " N"]:
        """Squared norm of the features of each training sample."""
        like = next(iter(self.influence.problem.params.values()))
        result = like.new_empty(self.influence.train.num_samples)
        for columns, own in self._chunks():
            result[columns] = torch.stack([squared_norms(part) for part in own]).sum(0)
        return result

    def _chunks(self) -> Iterator[tuple[Tensor, Repeats]]:
        like = next(iter(self.influence.problem.params.values()))
        for path in sorted(self.folder.glob("features-*.safetensors")):
            parts: Repeats = []
            with safe_open(path, framework="pt") as file:
                keys = sorted(file.keys())
                index = file.get_tensor("index")
                for key in keys:
                    if key == "index" or _SEPARATOR + "inputs" + _SEPARATOR not in key:
                        continue
                    unit, _, name = key.split(_SEPARATOR, 2)
                    while len(parts) <= int(unit):
                        parts.append({})
                    outputs = _SEPARATOR.join((unit, "outputs", name))
                    pair = (file.get_tensor(key).to(like), file.get_tensor(outputs).to(like))
                    parts[int(unit)][name] = Factored(*pair)
            yield index, parts


def _converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.detach().to("cpu", dtype).contiguous()
    if bool(torch.isfinite(values).all()) and not bool(torch.isfinite(narrow).all()):
        message = (
            f"features reach {float(values.abs().max()):.1e}, more than {dtype} can hold; store "
            "them as torch.bfloat16 or torch.float32"
        )
        raise ValueError(message)
    return narrow
