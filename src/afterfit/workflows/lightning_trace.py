"""A training trace as a callback of Lightning: ``pip install 'afterfit[lightning]'``."""

# pyright: reportMissingImports=false
from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from afterfit.influence import TrainingTrace

_KEYS = ("index", "outputs", "targets")


@final
class LightningTrace(Callback):
    """Records what ``training_step`` returns beside its loss.

    The step returns a dict with the keys ``loss``, ``index`` (positions, from
    :func:`~afterfit.problem.with_positions`), ``outputs`` and ``targets``; whatever the loss is
    made of, and however many batches are accumulated, each sample counts once a visit. Processes
    share their records before validation and at the end of each epoch. The record is part of the
    checkpoints of Lightning, and goes on with them.

    Parameters
    ----------
    trace
        Where to write.
    """

    def __init__(self, trace: TrainingTrace) -> None:
        self.trace = trace

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        found = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        if found.get("loss") is None and "index" not in found:
            return  # the step was skipped
        missing = [key for key in _KEYS if key not in found]
        if missing:
            message = (
                f"training_step returned {sorted(found)}, expected {missing} as well: return "
                '{"loss": loss, "index": index, "outputs": outputs, "targets": targets}'
            )
            raise ValueError(message)
        self.trace.observe(*(found[key] for key in _KEYS))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.trace.all_reduce()  # checkpoints are often written after it

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.trace.all_reduce()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.trace.state_dict())

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.trace.load_state_dict(state_dict)
