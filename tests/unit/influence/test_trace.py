"""A trace against a record of every visit, kept in lists and read in float64."""

import subprocess
import sys
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save_file
from torch import Generator, Tensor, distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from afterfit.influence import TrainingTrace, simple
from afterfit.problem import (
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    PerSample,
    Poisson,
    TrainingStream,
    with_positions,
)

REFUSED = (ValueError, TypeCheckError)  # shapes are caught earlier where annotations are checked
N, CLASSES = 23, 4
SAME = {"rtol": 1e-10, "atol": 1e-10}
SCORES = (
    TrainingTrace.mean_loss,
    TrainingTrace.loss_stderr,
    TrainingTrace.aum,
    TrainingTrace.forgetting,
    TrainingTrace.el2n,
    TrainingTrace.gradient_variance,
)


class Dense:
    """Every visit of every sample, one after another."""

    def __init__(self) -> None:
        self.losses = defaultdict(list)
        self.margins = defaultdict(list)
        self.norms = defaultdict(list)

    def record(self, index: Tensor, outputs: Tensor, targets: Tensor) -> None:
        for i, f, y in zip(index.tolist(), outputs.detach().double(), targets, strict=True):
            p = f.softmax(0)
            others = [float(f[c]) for c in range(len(f)) if c != int(y)]
            self.losses[i].append(-float(f.log_softmax(0)[y]))
            self.margins[i].append(float(f[y]) - max(others))
            self.norms[i].append(float((p - functional.one_hot(y, len(f))).norm()))

    def over(self, visits: dict, what) -> Tensor:
        rows = [torch.tensor(visits[i], dtype=torch.float64) for i in range(N)]
        return torch.stack([what(row) for row in rows])

    def forgetting(self) -> Tensor:
        counts, never = [], []
        for i in range(N):
            right = [m > 0 for m in self.margins[i]]
            counts.append(sum(a and not b for a, b in pairwise(right)))
            never.append(not any(right))
        most = max(counts)
        return torch.tensor([most + 1.0 if n else c for n, c in zip(never, counts, strict=True)])

    def require_same(self, trace: TrainingTrace) -> None:
        expected = {
            "mean_loss": self.over(self.losses, torch.mean),
            "loss_stderr": self.over(self.losses, lambda v: v.std() / len(v) ** 0.5),
            "aum": -self.over(self.margins, torch.mean),
            "forgetting": self.forgetting().double(),
            "el2n": self.over(self.norms, torch.mean),
            "gradient_variance": self.over(self.norms, torch.var),
        }
        assert trace.seen.tolist() == [len(self.losses[i]) for i in range(N)]
        for name, values in expected.items():
            torch.testing.assert_close(getattr(trace, name)(), values, **SAME)


def task(seed: int = 0):
    """A small network that learns some of the samples, forgets, and learns again."""
    generator = Generator().manual_seed(seed)
    inputs = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    net = nn.Linear(3, CLASSES).double()
    with torch.no_grad():
        net.weight.normal_(generator=generator)
        net.bias.zero_()
    return net, inputs, labels, generator


def train(batches, net, *records) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=2.0)
    for index, inputs, targets in batches:
        outputs = net(inputs)
        losses = [record(index, outputs, targets) for record in records]
        optimizer.zero_grad()
        next(loss for loss in losses if loss is not None).mean().backward()
        optimizer.step()


def recorded(num_epochs: int = 6, batch_size: int = 5) -> tuple[TrainingTrace, Dense]:
    net, inputs, labels, generator = task()
    trace, dense = TrainingTrace(N, Categorical()), Dense()
    for _ in range(num_epochs):
        order = torch.randperm(N, generator=generator)
        batches = [(i, inputs[i], labels[i]) for i in order.split(batch_size)]
        train(batches, net, trace.record, dense.record)
    return trace, dense


# What is recorded --------------------------------------------------------------------------------


def test_scores_are_those_of_a_record_of_every_visit():
    trace, dense = recorded()

    dense.require_same(trace)
    assert int((trace.forgetting() > 0).sum()) > 3  # the task does forget
    assert all(score(trace).dtype == torch.float64 for score in SCORES)


def test_scores_are_those_of_the_baselines():
    _, dense = recorded()
    trace, _ = recorded()
    margins = torch.tensor([dense.margins[i] for i in range(N)], dtype=torch.float64).T
    losses = torch.tensor([dense.losses[i] for i in range(N)], dtype=torch.float64)

    torch.testing.assert_close(trace.aum(), simple.aum_scores(margins), **SAME)
    torch.testing.assert_close(trace.mean_loss(), simple.mean_loss_scores(losses), **SAME)
    assert torch.equal(trace.forgetting().float(), simple.forgetting_scores(margins > 0))


def test_a_sample_that_is_drawn_twice_in_a_batch_counts_twice_in_order(generator):
    trace, dense = TrainingTrace(N, Categorical()), Dense()
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    everyone = torch.arange(N).repeat(2)
    for _ in range(40):
        drawn = torch.randint(0, N, (30,), generator=generator)
        index = torch.cat([everyone, drawn])[torch.randperm(76, generator=generator)]
        outputs = torch.randn(76, CLASSES, generator=generator, dtype=torch.float64)
        for record in (trace.record, dense.record):
            record(index, outputs, labels[index])

    dense.require_same(trace)


def test_the_losses_that_come_back_are_those_of_the_likelihood_and_train_the_network():
    net, inputs, labels, _ = task()
    outputs = net(inputs)

    found = TrainingTrace(N, Categorical()).record(torch.arange(N), outputs, labels)

    assert torch.equal(found, functional.cross_entropy(outputs, labels, reduction="none"))
    (gradient,) = torch.autograd.grad(found.mean(), net.weight)
    assert gradient.abs().max() > 0


def test_half_precision_and_confident_outputs_are_summed_in_double():
    outputs = torch.tensor([[30.0, 0.0], [25.0, 0.0]]).bfloat16()  # in single both losses are 0
    trace = TrainingTrace(2, Categorical())
    for _ in range(3):
        trace.observe([0, 1], outputs, torch.tensor([0, 0]))

    assert trace.aum().tolist() == [-30.0, -25.0]
    for score in (TrainingTrace.mean_loss, TrainingTrace.el2n):
        confident, less = score(trace).tolist()
        assert 0 < confident < less < 1e-9


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Poisson(), Bernoulli(), Categorical()])
def test_gradient_norms_are_those_of_autograd(likelihood, generator):
    trace = TrainingTrace(6, likelihood)
    norms = []
    for _ in range(3):
        outputs = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        shape = (6,) if isinstance(likelihood, Categorical) else (6, 2)
        targets = torch.randint(0, 2, shape, generator=generator)
        loss = trace.record(torch.arange(6), outputs, targets)
        (gradient,) = torch.autograd.grad(loss.sum(), outputs)
        norms.append(gradient.norm(dim=1))

    torch.testing.assert_close(trace.gradient_variance(), torch.stack(norms).var(0), **SAME)
    with torch.no_grad():  # as in a hook after the step
        trace.observe(torch.arange(6), outputs, targets)


def test_bernoulli_margins_are_those_of_the_output_that_disagrees_most():
    trace = TrainingTrace(2, Bernoulli())
    outputs, targets = torch.tensor([[2.0, -1.0], [3.0, 0.5]]), torch.tensor([[1.0, 1.0], [1, 1]])

    trace.observe(torch.arange(2), outputs, targets)

    assert trace.aum().tolist() == [1.0, -0.5]
    assert trace.forgetting().tolist() == [1.0, 0.0]


# Whence samples come -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_positions_come_through_workers_and_samplers(workers):
    net, inputs, labels, generator = task()
    trace, dense = TrainingTrace(N, Categorical()), Dense()
    weights = [1.0] * (N - 1) + [6.0]
    sampler = WeightedRandomSampler(weights, 12 * N, generator=generator)
    data = with_positions(TensorDataset(inputs, labels))

    train(
        DataLoader(data, 8, sampler=sampler, num_workers=workers), net, trace.record, dense.record
    )

    dense.require_same(trace)
    assert trace.seen.argmax() == N - 1


def test_batches_and_streams_know_the_positions_already():
    net, inputs, labels, _ = task()
    trace, dense = TrainingTrace(N, Categorical()), Dense()
    data = Batches((inputs, labels), batch_size=6)
    stream = TrainingStream(data, batch_size=4).batches(seed=0)

    train(data, net, trace.record, dense.record)
    train([next(stream) for _ in range(20)], net, trace.record, dense.record)

    dense.require_same(trace)


# Going on, putting together ----------------------------------------------------------------------


def require_equal(one: TrainingTrace, other: TrainingTrace) -> None:
    for name, column in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], column, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("where", ["file", "state"])
def test_a_trace_that_was_kept_goes_on_as_if_it_had_not_been_interrupted(tmp_path, where):
    net, inputs, labels, generator = task()
    whole, trace, dense = TrainingTrace(N, Categorical()), TrainingTrace(N, Categorical()), Dense()
    for epoch in range(6):
        if epoch == 3 and where == "file":
            trace.save(tmp_path / "runs" / "trace.safetensors")
            trace = TrainingTrace.load(tmp_path / "runs" / "trace.safetensors")
        elif epoch == 3:
            state = trace.state_dict()
            trace = TrainingTrace(N, Categorical())
            trace.load_state_dict(state)
        order = torch.randperm(N, generator=generator)
        batches = [(i, inputs[i], labels[i]) for i in order.split(5)]
        train(batches, net, trace.record, whole.record, dense.record)

    dense.require_same(trace)
    require_equal(whole, trace)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["trace.safetensors"] * (where == "file")


def test_files_bring_their_likelihood_with_them(tmp_path):
    path = tmp_path / "trace.safetensors"
    for likelihood in (Categorical(), Bernoulli(), Gaussian(0.25), Poisson()):
        TrainingTrace(3, likelihood).save(path)
        assert TrainingTrace.load(path).likelihood == likelihood
        assert TrainingTrace.load(path, likelihood).num_samples == 3
    with pytest.raises(ValueError, match=r"recorded with Poisson .*Categorical.* was given"):
        TrainingTrace.load(path, Categorical())


def test_a_loss_of_the_users_own_is_passed_again(tmp_path):
    own, path = PerSample(Gaussian().loss), tmp_path / "trace.safetensors"
    TrainingTrace(3, own).save(str(path))

    with pytest.raises(ValueError, match="PerSample, which no file can hold; pass it"):
        TrainingTrace.load(path)
    assert TrainingTrace.load(str(path), own).likelihood is own


def test_files_that_are_no_traces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        TrainingTrace.load(tmp_path / "missing")
    path = tmp_path / "other.safetensors"
    path.write_text("not safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        TrainingTrace.load(path)
    save_file({"weight": torch.zeros(2)}, str(path))
    with pytest.raises(ValueError, match="it is no training trace"):
        TrainingTrace.load(path)
    save_file({"seen": torch.zeros(2)}, str(path), {"format": "afterfit.TrainingTrace"})
    with pytest.raises(ValueError, match="another version"):
        TrainingTrace.load(path)


def test_states_of_other_data_are_refused():
    trace, _ = recorded(1)
    state = trace.state_dict()

    with pytest.raises(ValueError, match="9 columns of 4 numbers"):
        TrainingTrace(4, Categorical()).load_state_dict(state)
    for wrong in ({}, {**state, "more": state["seen"]}, {**state, "seen": torch.zeros(4)}):
        with pytest.raises(ValueError, match="no record of this data set"):
            TrainingTrace(N, Categorical()).load_state_dict(wrong)


def test_merged_traces_hold_the_visits_of_all():
    whole, dense = TrainingTrace(N, Categorical()), Dense()
    parts = [TrainingTrace(N, Categorical()) for _ in range(2)]
    generator = Generator().manual_seed(0)
    owner = torch.arange(N) % 2
    for _ in range(8):
        outputs = torch.randn(N, CLASSES, generator=generator, dtype=torch.float64)
        for rank, part in enumerate(parts):
            index = (owner == rank).nonzero()[:, 0]
            for record in (whole.record, part.record, dense.record):
                record(index, outputs[index], index % CLASSES)

    merged = TrainingTrace.merged(parts)

    dense.require_same(merged)
    require_equal(whole, merged)
    with pytest.raises(ValueError, match="expected one or more of the same kind"):
        TrainingTrace.merged([])
    with pytest.raises(ValueError, match="of the same kind"):
        TrainingTrace.merged([parts[0], TrainingTrace(N, Bernoulli())])


def test_a_subset_is_scored_apart():
    trace, _ = recorded()
    chosen = torch.tensor([5, 0, 7])

    part = trace.subset(chosen)

    assert torch.equal(part.mean_loss(), trace.mean_loss()[chosen])
    assert torch.equal(trace.subset(trace.seen > 0).aum(), trace.aum())


# Several processes -------------------------------------------------------------------------------


def visited(epoch: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs, labels and the shares of two processes in one epoch, with one sample drawn twice."""
    generator = Generator().manual_seed(epoch)
    outputs = torch.randn(N, CLASSES, generator=generator, dtype=torch.float64)
    order = torch.randperm(N, generator=generator)
    order = torch.cat([order, order[: N % 2]])
    return outputs, torch.arange(N) % CLASSES, [order[rank::2] for rank in range(2)]


def share(rank: int, folder: str) -> None:
    """What one of two processes does: record its shares, bring them together each epoch."""
    torch.set_num_threads(1)
    where = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    trace = TrainingTrace(N, Categorical())
    for epoch in range(5):
        if epoch == 3:  # every process goes on from the same file
            distributed.barrier()
            trace = TrainingTrace.load(f"{folder}/middle")
        outputs, labels, shares = visited(epoch)
        for index in shares[rank].split(4):
            trace.record(index, outputs[index], labels[index])
        trace.all_reduce()
        trace.all_reduce()  # nothing is counted twice
        if epoch == 2 and rank == 0:
            trace.save(f"{folder}/middle")
    trace.save(f"{folder}/{rank}")
    distributed.destroy_process_group()


def test_processes_share_what_each_has_seen(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    both = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    try:
        assert [process.wait(120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()

    dense = Dense()
    for epoch in range(5):
        outputs, labels, shares = visited(epoch)
        for index in shares:
            dense.record(index, outputs[index], labels[index])
    one, other = (TrainingTrace.load(tmp_path / str(rank)) for rank in range(2))

    require_equal(one, other)
    assert int(one.seen.sum()) == 5 * (N + 1)
    torch.testing.assert_close(one.mean_loss(), dense.over(dense.losses, torch.mean), **SAME)
    torch.testing.assert_close(one.aum(), -dense.over(dense.margins, torch.mean), **SAME)
    once = [i for i in range(N) if len(dense.losses[i]) == 5]
    assert len(once) > 15
    assert torch.equal(one.forgetting()[once], dense.forgetting().double()[once])


def test_a_process_alone_has_nothing_to_share():
    trace, dense = recorded(2)

    trace.all_reduce()

    dense.require_same(trace)


# Errors ------------------------------------------------------------------------------------------


def test_samples_that_were_never_seen_are_named():
    trace = TrainingTrace(5, Categorical())
    trace.record([1, 3], torch.zeros(2, 2), torch.tensor([0, 1]))

    for score in SCORES:
        with pytest.raises(ValueError, match=r"of 5 samples .*\[0, .*subset"):
            score(trace)
    part = trace.subset(trace.seen > 0)
    assert part.mean_loss().shape == (2,)
    for score in (TrainingTrace.loss_stderr, TrainingTrace.gradient_variance):
        with pytest.raises(ValueError, match="2 of 2 samples were seen fewer than 2 times"):
            score(part)


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson(), PerSample(Gaussian().loss)])
def test_scores_of_labels_are_refused_where_there_are_none(likelihood):
    trace = TrainingTrace(3, likelihood)
    for _ in range(2):
        trace.record(torch.arange(3), torch.ones(3, 1), torch.ones(3))

    for score in (TrainingTrace.aum, TrainingTrace.forgetting, TrainingTrace.el2n):
        with pytest.raises(
            TypeError, match=f"{type(likelihood).__name__} has none; take mean_loss"
        ):
            score(trace)
    assert trace.mean_loss().shape == trace.gradient_variance().shape == (3,)


def test_losses_that_are_not_finite_are_left_out_with_a_warning():
    trace = TrainingTrace(3, Categorical())
    labels = torch.tensor([0, 1, 0])
    trace.record(torch.arange(3), torch.tensor([[1.0, 0], [1, 0], [1, 0]]), labels)
    trace.record(torch.arange(3), torch.tensor([[torch.nan, 0], [0, 1], [torch.inf, 0]]), labels)

    with pytest.warns(UserWarning, match="2 visits had a loss that is not finite"):
        found = trace.mean_loss()
    assert trace.skipped.tolist() == [1, 0, 1]
    assert trace.seen.tolist() == [1, 2, 1]
    assert torch.isfinite(found).all()
    with pytest.warns(UserWarning, match="not finite"):
        assert trace.forgetting().tolist() == [0, 0, 0]


def test_visits_without_a_finite_loss_change_nothing(generator):
    with_them, without = (TrainingTrace(4, Categorical()) for _ in range(2))
    for _ in range(10):
        index = torch.randint(0, 4, (30,), generator=generator)
        outputs = torch.randn(30, 3, generator=generator)
        bad = torch.rand(30, generator=generator) < 0.4
        without.observe(index[~bad], outputs[~bad], index[~bad] % 3)
        with_them.observe(index, outputs.masked_fill(bad[:, None], torch.nan), index % 3)
        with_them.seen  # noqa: B018 (asking adds up what was held back)

    with pytest.warns(UserWarning, match="not finite"):
        found = with_them.forgetting()
    assert torch.equal(found, without.forgetting())
    assert torch.equal(with_them.seen, without.seen)


def test_visits_are_added_up_in_time_whatever_their_shapes(generator):
    def squares(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().flatten(1).sum(1)

    trace, expected = TrainingTrace(4, PerSample(squares)), torch.zeros(4, dtype=torch.float64)
    for length in (3, 3, 2, 70_000, 3, 3):
        outputs = torch.rand(4, length, generator=generator, dtype=torch.float64)
        index = torch.randperm(4, generator=generator)
        targets = torch.zeros_like(outputs)
        trace.record(index, outputs, targets)
        expected[index] += squares(outputs, targets) / 6
        outputs.zero_(), targets.fill_(9), index.zero_()  # what was recorded is not touched

    torch.testing.assert_close(trace.mean_loss(), expected, **SAME)


def test_what_does_not_fit_is_refused():
    trace = TrainingTrace(3, Categorical())
    outputs, labels = torch.zeros(2, 2), torch.tensor([0, 1])

    for index in (torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="expected 0 to 2: give TrainingTrace the length"):
            trace.record(index, outputs, labels)
    for index in (torch.tensor([0]), torch.tensor([[0], [1]])):
        with pytest.raises(REFUSED):
            trace.record(index, outputs, labels)
    with pytest.raises(ValueError, match="labels range from 0 to 2"):
        trace.record([0, 1], outputs, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="num_samples is 0"):
        TrainingTrace(0, Categorical())
    assert trace.seen.sum() == 0
    trace.observe([], outputs[:0], labels[:0])
    trace.observe([0, 1], outputs, labels)
    with pytest.raises(ValueError, match="labels range from -1 to 1"):
        trace.observe([0, 1], outputs, torch.tensor([-1, 1]))
    assert trace.seen.tolist() == [1, 1, 0]


def test_recording_moves_no_random_state(random_state_is_kept):
    trace = TrainingTrace(4, Categorical())
    trace.record(torch.arange(4), torch.zeros(4, 2), torch.zeros(4).long())


def test_a_trace_of_this_process_is_small():
    trace, _ = recorded(1)

    assert sum(column.nbytes for column in trace.state_dict().values()) == 72 * N


def test_a_loss_of_the_users_own_is_recorded():
    trace = TrainingTrace(2, PerSample(lambda outputs, y: (outputs[:, 0] - y).abs()))
    for shift in (1.0, 3.0):
        trace.record([0, 1], torch.zeros(2, 1), torch.tensor([0.5, shift]))

    assert trace.mean_loss().tolist() == [0.5, 2.0]
    assert trace.loss_stderr().tolist() == [0.0, 1.0]


if __name__ == "__main__":
    share(int(sys.argv[2]), sys.argv[1])
