"""A training trace as a callback of transformers' Trainer: ``pip install 'afterfit[hf]'``."""

# pyright: reportMissingImports=false
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from afterfit.influence import TrainingTrace
from afterfit.problem.positions import POSITION

FILE_NAME = "training_trace.safetensors"


@final
class HuggingFaceTrace(TrainerCallback):
    """Records the logits of the model as the ``Trainer`` trains it.

    The training set is wrapped in :func:`~afterfit.problem.with_positions`, its items being dicts
    of what the model takes, and ``TrainingArguments`` have ``remove_unused_columns=False``. While
    the ``Trainer`` trains, a hook takes the position out of each batch before the model sees it,
    and notes its logits; however many batches are accumulated, each sample counts once a visit.
    Processes share their records at the end of each epoch. Each checkpoint holds the record as
    ``training_trace.safetensors``: to resume, pass what ``TrainingTrace.load`` makes of it.

    Parameters
    ----------
    trace
        Where to write.
    targets
        Labels of all samples. Needed only where the model does not get to see ``labels``: with
        label smoothing, or a ``compute_loss_func``.
    """

    def __init__(self, trace: TrainingTrace, targets: Shaped[Tensor, "N *C"] | None = None) -> None:
        self.trace = trace
        self._targets = targets
        self._position: Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        *,
        model: nn.Module,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        if args.n_gpu > 1:
            message = (
                f"the Trainer splits each batch over {args.n_gpu} devices of one process, expected "
                "one process a device: start it by torchrun or accelerate launch"
            )
            raise ValueError(message)
        self._detach()
        disable: Any = torch.compiler.disable  # where the model is compiled, the hooks are not
        self._hooks = [
            model.register_forward_pre_hook(disable(self._take_position), with_kwargs=True),
            model.register_forward_hook(disable(self._note_outputs), with_kwargs=True),
        ]

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        self.trace.all_reduce()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        self.trace.all_reduce()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.trace.save(folder / FILE_NAME)

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        self._detach()
        self.trace.all_reduce()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _take_position(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._position = kwargs.get(POSITION)
        if module.training and self._position is None:
            message = (
                f"a batch holds {sorted(kwargs)}, expected the key {POSITION!r} as well: pass "
                "train_dataset=with_positions(dataset), and remove_unused_columns=False to "
                "TrainingArguments"
            )
            raise ValueError(message)
        return args, {key: value for key, value in kwargs.items() if key != POSITION}

    def _note_outputs(
        self,
        module: nn.Module,
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        position, self._position = self._position, None
        if not module.training or position is None:
            return
        if not isinstance(output, Mapping) or "logits" not in output:
            message = (
                f"the model returned a {type(output).__name__}, expected an output with logits: "
                "keep return_dict=True"
            )
            raise ValueError(message)
        self.trace.observe(position, output["logits"], self._targets_of(position, kwargs))

    def _targets_of(self, position: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        if self._targets is not None:
            self._targets = self._targets.to(position.device)
            return self._targets[position]
        if kwargs.get("labels") is None:
            message = (
                "the model did not get to see the labels: the Trainer keeps them for label "
                "smoothing or compute_loss_func; pass all of them: HuggingFaceTrace(trace, targets)"
            )
            raise ValueError(message)
        return kwargs["labels"]
