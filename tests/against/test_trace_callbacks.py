"""The callbacks of trainers record what a plain loop over the same batches does."""

import warnings

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from afterfit.influence import TrainingTrace
from afterfit.problem import Categorical, with_positions

pytestmark = [
    pytest.mark.against,
    pytest.mark.filterwarnings("ignore"),  # theirs
]

N, CLASSES, LENGTH = 22, 3, 6


class Dense:
    """Losses of every visit by position."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = [[] for _ in range(N)]

    def note(self, index: Tensor, outputs: Tensor, targets: Tensor) -> None:
        losses = functional.cross_entropy(outputs.detach().double(), targets, reduction="none")
        for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
            self.losses[i].append(loss)

    def require_same(self, trace: TrainingTrace) -> None:
        assert trace.seen.tolist() == [len(losses) for losses in self.losses]
        means = [sum(losses) / len(losses) for losses in self.losses]
        assert_close(trace.mean_loss(), torch.tensor(means, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.fixture
def images() -> TensorDataset:
    generator = Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    return TensorDataset(torch.randn(N, 4, generator=generator), labels)


# Lightning ---------------------------------------------------------------------------------------


@pytest.fixture
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lightning.pytorch", reason="pip install 'afterfit[lightning]'")


def lightning_module(lightning, dense: Dense, keys: tuple[str, ...], automatic: bool = True):
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, CLASSES)
            self.automatic_optimization = automatic

        def training_step(self, batch, batch_idx):
            index, inputs, targets = batch
            outputs = self.net(inputs)
            dense.note(index, outputs, targets)
            loss = functional.cross_entropy(outputs, targets)
            if not automatic:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            every = {"loss": loss, "index": index, "outputs": outputs, "targets": targets}
            return {key: every[key] for key in keys}

        def validation_step(self, batch, batch_idx):
            self.net(batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    return Module()


def lightning_trainer(lightning, trace: TrainingTrace, folder, epochs: int, **settings):
    from afterfit.workflows.lightning_trace import LightningTrace

    return lightning.Trainer(
        max_epochs=epochs, callbacks=[LightningTrace(trace)], default_root_dir=folder,
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


KEYS = ("loss", "index", "outputs", "targets")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("automatic", [True, False])
def test_lightning_records_every_visit(
    lightning, images, tmp_path, workers, accumulated, automatic
):
    if not automatic and accumulated > 1:
        pytest.skip("manual optimization accumulates by itself")
    trace, dense = TrainingTrace(N, Categorical()), Dense()
    loader = DataLoader(with_positions(images), 4, shuffle=True, num_workers=workers)
    trainer = lightning_trainer(
        lightning, trace, tmp_path, 3,
        accumulate_grad_batches=accumulated, enable_checkpointing=False,
    )  # fmt: skip

    module = lightning_module(lightning, dense, KEYS, automatic)
    trainer.fit(module, loader, DataLoader(with_positions(images), 4))

    assert trace.seen.tolist() == [3] * N
    dense.require_same(trace)


def test_lightning_goes_on_from_its_checkpoint(lightning, images, tmp_path):
    dense, loader = Dense(), DataLoader(with_positions(images), 4, shuffle=True)
    first = lightning_trainer(lightning, TrainingTrace(N, Categorical()), tmp_path, 2)
    first.fit(lightning_module(lightning, dense, KEYS), loader)
    path = first.checkpoint_callback.best_model_path

    trace = TrainingTrace(N, Categorical())
    module = lightning_module(lightning, dense, KEYS)
    lightning_trainer(lightning, trace, tmp_path, 5).fit(module, loader, ckpt_path=path)

    assert trace.seen.tolist() == [5] * N
    dense.require_same(trace)


def test_lightning_says_what_the_step_must_return(lightning, images, tmp_path):
    trainer = lightning_trainer(lightning, TrainingTrace(N, Categorical()), tmp_path, 1)
    module = lightning_module(lightning, Dense(), ("loss", "index"))

    with pytest.raises(ValueError, match=r"expected \['outputs', 'targets'\] as well"):
        trainer.fit(module, DataLoader(with_positions(images), 4))


# Hugging Face ------------------------------------------------------------------------------------


@pytest.fixture
def transformers():
    pytest.importorskip("accelerate", reason="pip install accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="pip install 'afterfit[hf]'")


@pytest.fixture
def texts() -> list[dict]:
    generator = Generator().manual_seed(0)
    words = torch.randint(0, 20, (N, LENGTH), generator=generator)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    return [
        {"input_ids": row.tolist(), "labels": int(label)}
        for row, label in zip(words, labels, strict=True)
    ]


def bert(transformers):
    torch.manual_seed(0)
    settings = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_labels": CLASSES}
    settings |= {"num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8}
    config = transformers.BertConfig(
        **settings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return transformers.BertForSequenceClassification(config)


def hugging_face(transformers, texts, trace, folder, targets=None, loss=None, **settings):
    """A trainer of a small model, and the losses of every visit as the model saw them."""
    from afterfit.workflows.huggingface_trace import HuggingFaceTrace

    dense, model = Dense(), bert(transformers)
    place = {(*item["input_ids"],): i for i, item in enumerate(texts)}
    assert len(place) == N
    labels = torch.tensor([item["labels"] for item in texts])

    def watch(module, args, kwargs, output):
        if module.training:
            index = torch.tensor([place[(*row,)] for row in kwargs["input_ids"].tolist()])
            dense.note(index, output.logits, labels[index])

    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 3,
        "remove_unused_columns": False, "report_to": "none", "save_strategy": "no",
        "learning_rate": 1e-2, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**{**given, **settings}),
        train_dataset=with_positions(texts),
        eval_dataset=texts,
        compute_loss_func=loss,
        callbacks=[HuggingFaceTrace(trace, targets)],
    )
    model.register_forward_hook(watch, with_kwargs=True)
    return trainer, dense


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 4},
        {"dataloader_num_workers": 2},
        {"eval_strategy": "epoch"},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
)
def test_the_trainer_records_every_visit(transformers, texts, tmp_path, settings):
    trace = TrainingTrace(N, Categorical())
    trainer, dense = hugging_face(transformers, texts, trace, tmp_path, **settings)

    trainer.train()

    assert trace.seen.tolist() == [3] * N
    dense.require_same(trace)
    before = trace.state_dict()
    trainer.evaluate()
    assert_close(trace.state_dict(), before)


def test_the_trainer_is_not_changed_by_recording(transformers, texts, tmp_path):
    from afterfit.workflows.huggingface_trace import HuggingFaceTrace

    trace = TrainingTrace(N, Categorical())
    recorded, _ = hugging_face(transformers, texts, trace, tmp_path / "recorded")
    recorded.train()
    plain, _ = hugging_face(transformers, texts, trace, tmp_path / "plain")
    plain.remove_callback(HuggingFaceTrace)
    plain.train_dataset = texts
    plain.train()

    for one, other in zip(recorded.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", ["smoothing", "function"])
def test_labels_that_the_model_does_not_see_are_looked_up(transformers, texts, tmp_path, how):
    settings = {"label_smoothing_factor": 0.1} if how == "smoothing" else {}

    def loss(outputs, labels, num_items_in_batch=None):
        return functional.cross_entropy(outputs.logits, labels)

    own = loss if how == "function" else None
    labels = torch.tensor([item["labels"] for item in texts])
    trace = TrainingTrace(N, Categorical())
    trainer, dense = hugging_face(
        transformers, texts, trace, tmp_path, targets=labels, loss=own, **settings
    )
    trainer.train()
    dense.require_same(trace)

    trainer, _ = hugging_face(transformers, texts, trace, tmp_path, loss=own, **settings)
    with pytest.raises(ValueError, match="pass all of them"):
        trainer.train()


def test_the_trainer_goes_on_from_its_checkpoint(transformers, texts, tmp_path):
    settings = {"save_strategy": "epoch", "num_train_epochs": 2}
    trace = TrainingTrace(N, Categorical())
    first, before = hugging_face(transformers, texts, trace, tmp_path, **settings)
    first.train()
    folder = transformers.trainer_utils.get_last_checkpoint(str(tmp_path))

    trace = TrainingTrace.load(f"{folder}/training_trace.safetensors")
    settings["num_train_epochs"] = 4
    trainer, after = hugging_face(transformers, texts, trace, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=folder)

    after.losses = [a + b for a, b in zip(before.losses, after.losses, strict=True)]
    assert trace.seen.tolist() == [4] * N
    after.require_same(trace)


def test_the_trainer_says_where_positions_are_missing(transformers, texts, tmp_path):
    trace = TrainingTrace(N, Categorical())
    for settings, data in (({"remove_unused_columns": True}, with_positions(texts)), ({}, texts)):
        trainer, _ = hugging_face(transformers, texts, trace, tmp_path, **settings)
        trainer.train_dataset = data
        with pytest.raises(ValueError, match="remove_unused_columns=False"):
            trainer.train()


def test_data_sets_of_the_hub_bring_positions(transformers, texts, tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install 'afterfit[hf]'")
    trace = TrainingTrace(N, Categorical())
    trainer, dense = hugging_face(transformers, texts, trace, tmp_path)
    trainer.train_dataset = with_positions(datasets.Dataset.from_list(texts))

    trainer.train()

    dense.require_same(trace)
