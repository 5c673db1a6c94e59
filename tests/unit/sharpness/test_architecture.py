import math
from functools import cache

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from afterfit.problem import Batches
from afterfit.sharpness.architecture import CHANGES, Architecture, explore
from afterfit.sharpness.double import in_double
from afterfit.sharpness.rescaling import (
    adapt_epsilon,
    change_of_outputs,
    evaluate,
    fold_epsilon,
    lent,
    mix_in_place,
    permute_in_place,
    private_copy,
    scale_units,
    tensors_of,
    verify,
)
from afterfit.sharpness.symmetry import Part, Symmetry
from tests.laws.test_influence_laws import require_untouched
from tests.rescalable import NETWORKS, Rescalable, changed_by, images, vectors

every_network = pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)


@cache
def explored(name: str) -> Architecture:
    """One exploration for all tests; it is frozen, and its changes are copies."""
    return explore(NETWORKS[name].module(), NETWORKS[name].data())


def described(module: nn.Module, data: Batches) -> set[str]:
    return {str(freedom) for freedom in explore(module, data).freedoms}


@every_network
def test_every_kind_that_the_architecture_admits_is_found_and_no_other(case: Rescalable):
    assert set(explored(case.name).kinds) == case.kinds


def test_the_scalings_of_a_relu_network_are_named():
    found = {str(freedom) for freedom in explored("mlp").freedoms}
    for kind in ("node", "layer"):
        assert f"{kind}: 6 units: 0.weight[u] × a, 0.bias[u] × a, 2.weight[:, u] ÷ a" in found
        assert f"{kind}: 7 units: 2.weight[u] × a, 2.bias[u] × a, 4.weight[:, u] ÷ a" in found
    assert len(found) == 6  # and the permutations of both layers


def test_weights_before_batch_norm_are_scaled_with_its_statistics_and_channels_when_flattened():
    found = {str(freedom) for freedom in explored("conv-bn").freedoms}
    before = "0.weight[u] × a, 0.bias[u] × a, 1.running_mean[u] × a, 1.running_var[u] × a^2"
    assert f"normalization: 4 units: {before}" in found
    assert "affine: 6 units: 4.weight[u] × a, 4.bias[u] × a, 8.weight[:, u*4] ÷ a" in found


def test_packed_attention_is_scaled_by_its_thirds():
    found = {str(freedom) for freedom in explored("gpt").freedoms}
    heads = "blocks.0.qkv.weight[u] × a, blocks.0.qkv.weight[8+u] ÷ a, blocks.0.qkv.bias[u] × a"
    assert f"query-key: 8 units: {heads}" in found
    values = (
        "blocks.0.qkv.weight[16+u] × a, blocks.0.qkv.bias[16+u] × a, blocks.0.out.weight[:, u] ÷ a"
    )
    assert f"node: 8 units: {values}" in found


def test_a_residual_stream_before_layer_norm_is_scaled_as_a_whole():
    whole = [one for one in explored("gpt").freedoms if one.symmetry.size == 1]
    assert len(whole) == 1
    assert whole[0].symmetry.names == {
        "token.weight", "position.weight",
        *(f"blocks.0.{layer}.{part}" for layer in ("out", "down") for part in ("weight", "bias")),
    }  # fmt: skip


class Residual(nn.Module):
    """Two branches of BatchNorms that add up: the stream's channels are scaled together."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.stem, self.norm1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.stem(x)))
        return self.head(functional.relu(x + self.norm2(self.conv(x))).mean((2, 3)))


class Gated(nn.Module):
    """RMSNorm, a gate, and products of units."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.embed, self.norm = nn.Linear(5, 6), nn.RMSNorm(6, eps=1e-5)
        self.gate, self.up = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
        self.down, self.head = nn.Linear(8, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm(x)
        return self.head(x + self.down(functional.silu(self.gate(h)) * self.up(h)))


def made(build, inputs) -> Rescalable:
    return Rescalable("made", build, inputs, frozenset())


def test_channels_of_a_residual_stream_are_scaled_in_every_branch():
    case = made(Residual, images)
    found = [one for one in explore(case.module(), case.data()).freedoms if one.kind == "affine"]
    assert any(
        {"norm1.weight", "norm2.weight", "conv.weight", "head.weight"} <= one.symmetry.names
        for one in found
    )


def test_gates_and_root_mean_square_norms_are_understood():
    case = made(Gated, vectors)
    found = described(case.module(), case.data())
    assert "node: 8 units: up.weight[u] × a, down.weight[:, u] ÷ a" in found
    assert not any("gate" in one and "node" in one for one in found)
    assert (
        "affine: 6 units: norm.weight[u] × a, gate.weight[:, u] ÷ a, up.weight[:, u] ÷ a" in found
    )


def test_signs_of_odd_units_behind_a_batch_norm_are_found():
    def odd() -> nn.Module:
        norm = nn.BatchNorm1d(6)
        return nn.Sequential(nn.Linear(5, 6), norm, nn.Tanh(), nn.Linear(6, 3))

    case = made(odd, vectors)
    found = explore(case.module(), case.data())
    flipped = [one.symmetry.names for one in found.freedoms if one.kind == "sign"]
    assert {"1.weight", "1.bias", "3.weight"} in flipped
    assert {"normalization", "permutation"} <= set(found.kinds)


def test_separate_attention_modules_and_squares_and_groups():
    class Separate(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.square, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.attention(x, x, x, need_weights=False)[0].mean(1)
            return self.out(functional.relu(self.square(x)).square())

    def sequences(generator: Generator) -> Tensor:
        return torch.randn(24, 3, 4, dtype=torch.float64, generator=generator)

    case = made(Separate, sequences)
    found = described(case.module(), case.data())
    square = "6 units: square.weight[u] × a, square.bias[u] × a, out.weight[:, u] ÷ a^2"
    assert any(square in one or square.replace("÷ a^2", "× a^-2") in one for one in found)
    assert any("query-key" in one for one in found)

    grouped = made(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        ),
        images,
    )
    kinds = explore(grouped.module(), grouped.data()).freedoms
    assert any(one.symmetry.names == {"0.weight", "0.bias"} for one in kinds)


@every_network
def test_changes_of_every_kind_keep_the_outputs_and_move_the_parameters(case: Rescalable):
    architecture = explored(case.name)
    before = tensors_of(architecture.network)
    for kind in architecture.kinds:
        changed = architecture.changed(kind, math.log(4), Generator().manual_seed(2))
        assert change_of_outputs(architecture.network, changed, architecture.inputs) < 1e-8
        after = tensors_of(changed)
        assert any(not torch.equal(before[name], after[name]) for name in before)


@every_network
def test_the_users_module_is_not_touched(case: Rescalable):
    module = case.module().train()
    require_untouched(module, lambda: explore(module, case.data()))


def test_the_seed_makes_the_change_reproducible():
    architecture = explored("conv-bn")
    first, second, third = (
        tensors_of(architecture.changed("affine", 1.0, Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["1.weight"], second["1.weight"])
    assert not torch.equal(first["1.weight"], third["1.weight"])


# Negative controls --------------------------------------------------------------------------------


def outputs_of(case: Rescalable) -> tuple[nn.Module, Tensor]:
    inputs = case.data().fetch(torch.arange(24)).inputs
    return private_copy(case.module()), inputs


def test_scaling_the_head_is_refused():
    network, inputs = outputs_of(NETWORKS["mlp"])
    head = Symmetry(1, (Part("4.weight"), Part("4.bias")))
    with pytest.raises(ValueError, match="does not preserve the function"):
        verify(network, scale_units(network, head, torch.tensor([4.0]).double()), inputs)


def test_scaling_before_batch_norm_without_its_statistics_is_refused_and_with_them_exact():
    network, inputs = outputs_of(NETWORKS["conv-bn"])
    factors = torch.tensor([0.5, 2.0, 4.0, 1e3]).double()
    naive = Symmetry(4, (Part("0.weight", 0), Part("0.bias", 0)))
    with pytest.raises(ValueError, match="running statistics"):
        verify(network, scale_units(network, naive, factors), inputs)
    statistics = (Part("1.running_mean", 0), Part("1.running_var", 0, exponent=2.0))
    right = Symmetry(4, (*naive.parts, *statistics))
    assert verify(network, scale_units(network, right, factors), inputs, 1e-12) < 1e-12


def test_mixing_only_queries_and_mixing_across_a_nonlinearity_are_refused():
    network, inputs = outputs_of(NETWORKS["gpt"])
    mixer = torch.eye(8, dtype=torch.float64) + 0.3 * torch.ones(8, 8).tril(-1).double()
    queries = Symmetry(8, (Part("blocks.0.qkv.weight", 0), Part("blocks.0.qkv.bias", 0)))
    with pytest.raises(ValueError, match="does not preserve"):
        verify(network, changed_by(mix_in_place, network, queries, mixer), inputs)
    relu, x = outputs_of(NETWORKS["mlp"])
    hidden = Symmetry(
        6, (Part("0.weight", 0), Part("0.bias", 0), Part("2.weight", 1, exponent=-1.0))
    )
    with pytest.raises(ValueError, match="does not preserve"):
        verify(relu, changed_by(mix_in_place, relu, hidden, mixer[:6, :6]), x)
    assert (
        verify(relu, changed_by(permute_in_place, relu, hidden, torch.arange(6).flip(0)), x) < 1e-12
    )


def test_the_epsilon_of_layer_norm_is_scaled_with_its_inputs():
    network = private_copy(made(Gated, vectors).module())
    inputs = vectors(Generator().manual_seed(0))
    stream = Symmetry(
        1,
        (
            Part("embed.weight"), Part("embed.bias"), Part("down.weight"),
            Part("head.weight", exponent=-1.0),
        ),
    )  # fmt: skip
    scaled = scale_units(network, stream, torch.tensor([0.01]).double())
    assert change_of_outputs(network, scaled, inputs) > 1e-3
    assert verify(network, adapt_epsilon(network, scaled, inputs), inputs, 1e-12) < 1e-12


def test_asking_for_a_change_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match=r"no change of kind 'node'.*sign"):
        explored("tanh").changed("node", 1.0, Generator())


def test_too_few_outputs_are_refused():
    case = NETWORKS["vit"]
    with pytest.raises(ValueError, match="pass more samples"):
        explore(case.module(), case.data().subset(torch.arange(2)))


def test_dicts_and_tuples_of_inputs_are_cast_to_double():
    rows = [{"x": torch.rand(3), "labels": torch.tensor(i)} for i in range(4)]
    cast = in_double(Batches(rows), torch.device("cpu"))
    assert cast.fetch(torch.arange(4)).inputs["x"].dtype == torch.float64
    pair = in_double(
        Batches((torch.rand(4, 2), torch.arange(4), torch.arange(4))), torch.device("cpu")
    )
    first, second = pair.fetch(torch.arange(4)).inputs
    assert (first.dtype, second.dtype) == (torch.float64, torch.int64)


def test_inputs_by_name_and_single_precision_are_explored():
    class Named(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.body(x).relu()) * scale[:, None]}

    generator = Generator().manual_seed(0)
    rows = [
        {"x": torch.randn(3, generator=generator), "scale": torch.rand((), generator=generator),
         "labels": torch.tensor(i % 3)}
        for i in range(20)
    ]  # fmt: skip
    architecture = explore(Named(), Batches(rows, 5))
    assert set(architecture.kinds) == {"layer", "node", "permutation"}
    assert evaluate(architecture.network, architecture.inputs).dtype == torch.float64


def test_kinds_come_in_their_order():
    kinds = explored("vit").kinds
    assert list(kinds) == [kind for kind in CHANGES if kind in kinds]


def test_mixing_undoes_itself():
    network, _ = outputs_of(NETWORKS["mlp"])
    hidden = Symmetry(6, (Part("0.weight", 0), Part("2.weight", 1, exponent=-1.0)))
    mixer = torch.eye(6).double() + 0.1
    there = changed_by(mix_in_place, network, hidden, mixer)
    back = changed_by(mix_in_place, there, hidden, torch.linalg.inv(mixer))
    for name, value in tensors_of(network).items():
        assert_close(tensors_of(back)[name], value, rtol=1e-10, atol=1e-10)


# Networks whose running variances are below 0, and NaN ------------------------------------------


def test_an_exact_rescaling_by_a_thousandth_changes_nothing_that_is_found():
    case = NETWORKS["conv-bn"]
    found = explored(case.name)
    before = next(one.symmetry for one in found.freedoms if one.kind == "normalization")
    factors = torch.full((before.size,), 1e-3).double()
    network = scale_units(found.network, before, factors)
    name = next(name for name in before.names if name.endswith("running_var"))
    assert float(network.get_buffer(name).max()) < 0
    assert change_of_outputs(found.network, network, found.inputs) < 1e-10
    assert described(network, case.data()) == set(map(str, found.freedoms))


def test_epsilon_is_folded_into_the_variance_it_is_added_to():
    network = private_copy(NETWORKS["conv-bn"].module())
    inputs = images(Generator().manual_seed(0))
    assert change_of_outputs(network, fold_epsilon(network), inputs) < 1e-14
    assert fold_epsilon(network)[1].eps == 0


def test_a_trial_leaves_the_network_as_it_was():
    network = private_copy(NETWORKS["mlp"].module())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with lent(network, ["0.weight"]):
        network[0].weight.data.zero_()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_outputs_that_are_not_finite_are_refused():
    case = NETWORKS["conv-bn"]
    module = case.module()
    with torch.no_grad():
        module[1].running_var.fill_(-1.0)
    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        explore(module, case.data())


class Rooted(nn.Linear):
    """Finite, with a slope that is not: the root of a zero."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x) + (0 * self.weight.sum()).sqrt()


def test_sensitivities_that_are_not_finite_are_refused():
    data = Batches((vectors(Generator().manual_seed(0)), torch.zeros(24)))
    with pytest.raises(ValueError, match="sensitivity to weight is NaN or infinite"):
        explore(Rooted(5, 3).double(), data)


class Tempered(nn.Linear):
    """Logits by a temperature that has no axes, as in CLIP."""

    def __init__(self) -> None:
        nn.Linear.__init__(self, 5, 3)
        self.t = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x) * self.t


def test_a_parameter_without_axes_is_scaled_as_a_whole():
    data = Batches((vectors(Generator().manual_seed(0)), torch.zeros(24)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = Tempered().double()
    found = explore(module, data)
    assert [one.symmetry.names for one in found.freedoms] == [{"weight", "bias", "t"}]
    assert found.changed("layer", 1.0, Generator()).get_parameter("t").shape == ()
