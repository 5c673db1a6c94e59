"""Influence by token and by sequence in language models, against gradients of single losses."""

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.influence import GradientDot, TracIn, token_scores
from afterfit.problem import Batches, PerSample, Problem, restrict
from tests import truth

transformers = pytest.importorskip("transformers")
LENGTH, VOCABULARY = 5, 11


def next_token_losses(found: Tensor, y: Tensor) -> Tensor:
    """Nats of each next token; none after the last, and none where the target is -100."""
    return nn.functional.cross_entropy(
        found[:, :-1].mT, y[:, 1:], reduction="none", ignore_index=-100
    )


def sequence_loss(found: Tensor, y: Tensor) -> Tensor:
    return next_token_losses(found, y).sum(1)


def gpt() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            attn_implementation="eager",
            use_cache=False,
        )
        return transformers.GPT2LMHeadModel(config).double().eval()


def bert() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=6,
            max_position_embeddings=8,
            attn_implementation="eager",
        )
        return transformers.BertForMaskedLM(config).double().eval()


def sentences(num: int, seed: int) -> Batches:
    ids = torch.randint(0, VOCABULARY, (num, LENGTH), generator=Generator().manual_seed(seed))
    targets = ids.clone()
    targets[0, -2:] = -100
    rows = [{"input_ids": ids[i], "labels": targets[i]} for i in range(num)]
    return Batches(rows, batch_size=2)


class Adapted(nn.Module):
    """A linear layer with an addition of low rank (LoRA), for a network that calls it."""

    def __init__(self, layer: nn.Module, out: int) -> None:
        nn.Module.__init__(self)
        self.layer = layer
        self.lora_a = nn.Linear(8, 2, bias=False).double()
        self.lora_b = nn.Linear(2, out, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.lora_b(self.lora_a(x))


TRAIN, QUERY = sentences(3, 1), sentences(2, 2)
LOSS = PerSample(sequence_loss)


@pytest.mark.parametrize("make", [gpt, bert])
def test_sequences_are_compared_by_their_whole_gradients(make):
    problem = Problem.from_module(make(), LOSS)
    influence = GradientDot().fit(problem, TRAIN)
    train, query = (truth.gradients(problem, data) for data in (TRAIN, QUERY))
    assert_close(influence.scores(QUERY), query @ train.T, rtol=1e-6, atol=1e-8)
    assert_close(influence.self_scores(), train.square().sum(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("names", ["*", "transformer.h.0.mlp.*"])
def test_tokens_are_compared_by_the_gradients_of_their_losses(names: str):
    problem = restrict(Problem.from_module(gpt(), LOSS), names)
    found = token_scores(problem, TRAIN, QUERY, next_token_losses)

    train = truth.gradients(problem, TRAIN)
    for t in range(LENGTH - 1):
        one = PerSample(lambda outputs, y, t=t: next_token_losses(outputs, y)[:, t])
        alone = Problem(
            problem.forward, one, problem.params, problem.buffers, problem.train_forward
        )
        expected = truth.gradients(alone, QUERY) @ train.T
        assert_close(found[:, t], expected, rtol=1e-6, atol=1e-8)
    assert not bool(found[0, -1].any())  # a token that is left out has no influence
    assert_close(found.sum(1), GradientDot().fit(problem, TRAIN).scores(QUERY))


def test_adapters_alone_are_a_small_problem():
    net = gpt()
    net.transformer.h[0].mlp.c_fc = Adapted(net.transformer.h[0].mlp.c_fc, 32)
    problem = restrict(Problem.from_module(net, LOSS), "*lora*")
    rows = truth.gradients(problem, TRAIN)

    assert problem.num_params == 8 * 2 + 2 * 32
    assert_close(TracIn([net.state_dict()]).fit(problem, TRAIN).scores(TRAIN), rows @ rows.T)


def test_losses_that_are_not_by_token_are_refused():
    problem = restrict(Problem.from_module(gpt(), LOSS), "transformer.h.0.mlp.*")
    with pytest.raises(ValueError, match=r"token_losses gave shape \(2,\), expected \(2, tokens\)"):
        token_scores(problem, TRAIN, QUERY, sequence_loss)
