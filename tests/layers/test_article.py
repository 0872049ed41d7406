"""The article's modules, stated once more from its description, over many random configurations."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from parity import as_function, assert_parity, perturb, with_parameters
from torch import Tensor, nn

from selkern.layers.article import Attention, MLPAttention, SKAttention

BRANCHES_AXIS, BATCH_AXIS = 0, 1  # of the stacked logits (M, N, C, 1, 1)


class ArticleSK(nn.Module):
    """U = sum of branches; softmax over the stacked branches of fc_i(fc(mean U)); V = weighted sum."""

    def __init__(
        self,
        channel: int,
        kernels: Sequence[int],
        reduction: int,
        group: int,
        L: int,
        axis: int = BRANCHES_AXIS,
    ) -> None:
        super().__init__()
        self.axis = axis
        width = max(L, channel // reduction)
        self.convs = nn.ModuleList()
        for k in kernels:
            conv = nn.Conv2d(channel, channel, kernel_size=k, padding=k // 2, groups=group)
            parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(channel), relu=nn.ReLU())
            self.convs.append(nn.Sequential(parts))
        self.fc = nn.Linear(channel, width)
        self.fcs = nn.ModuleList([nn.Linear(width, channel) for _ in kernels])

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([branch(x) for branch in self.convs], 0)
        mean = maps.sum(0).mean(-1).mean(-1)
        z = self.fc(mean)
        logits = torch.stack([fc(z)[:, :, None, None] for fc in self.fcs], 0)
        return (torch.softmax(logits, dim=self.axis) * maps).sum(0)


class ArticleAttention(nn.Module):
    """softmax(H attn(H)^T) H."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attn = nn.Linear(hidden_size, hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        scores = torch.matmul(h, self.attn(h).transpose(1, 2))
        return torch.matmul(torch.softmax(scores, dim=2), h)


class ArticleMLP(nn.Module):
    """linear1 -> ReLU -> attention -> linear2 -> ReLU."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(input_size, hidden_size)
        self.linear2 = nn.Linear(hidden_size, output_size)
        self.attention = ArticleAttention(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear2(self.attention(torch.relu(self.linear1(x)))))


@dataclass(frozen=True)
class SKCase:
    """Arguments of an SKAttention and the shape of its input."""

    channel: int
    kernels: tuple[int, ...]
    reduction: int
    group: int
    L: int
    batch: int
    height: int
    width: int
    training: bool

    @classmethod
    def draw(cls, seed: int) -> SKCase:
        r = random.Random(seed)
        group = r.choice([1, 1, 2, 4])
        channel = group * r.randint(1, 6)
        kernels = tuple(r.choices([1, 3, 5, 7], k=r.randint(1, 4)))
        batch, height, width = r.randint(1, 5), r.randint(1, 9), r.randint(1, 9)
        # BatchNorm on few values is all but a sign function: no two implementations agree on its gradient.
        training = r.random() < 0.7 and batch * height * width > 5
        return cls(channel, kernels, r.randint(1, 16), group, r.choice([1, 4, 9, 32]), batch, height, width, training)

    def x(self) -> Tensor:
        return torch.randn(self.batch, self.channel, self.height, self.width)

    def pair(self, axis: int = BRANCHES_AXIS) -> tuple[nn.Module, nn.Module]:
        options = (self.channel, self.kernels, self.reduction, self.group, self.L)
        return same_weights(SKAttention(*options), ArticleSK(*options, axis=axis), self.training)


def same_weights(ours: nn.Module, article: nn.Module, training: bool) -> tuple[nn.Module, nn.Module]:
    """Both modules with the article's weights, loaded strictly; their keys and shapes must be the same."""
    perturb(article, 0.2)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, article)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    ours.load_state_dict(article.state_dict(), strict=True)
    return ours.train(training), article.train(training)


def assert_same(ours: nn.Module, article: nn.Module, x: Tensor) -> None:
    """Outputs, gradients and buffers: tightly in float64, then with torch's default tolerance in float32.

    In float32 the gradients are those of a loss of about 1, as that of a mean is; a sum has larger errors.
    """
    exact = x.double()
    for m in (ours, article):
        m.double()
    assert_parity(as_function(ours), as_function(article), with_parameters(ours, exact))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(article.named_buffers()))
    for m in (ours, article):
        m.float()
    torch.testing.assert_close(ours(x), article(x))
    f, g, scale = as_function(ours), as_function(article), x.numel() ** 0.5
    assert_parity(lambda t: f(t) / scale, lambda t: g(t) / scale, with_parameters(ours, x))


@pytest.mark.parametrize("seed", range(120))
def test_sk_attention_is_the_article_s(seed: int) -> None:
    case = SKCase.draw(seed)
    assert_same(*case.pair(), case.x())


@pytest.mark.parametrize("seed", range(40))
def test_attention_is_the_article_s(seed: int) -> None:
    r = random.Random(seed)
    batch, tokens, hidden = r.randint(1, 5), r.randint(1, 12), r.randint(1, 24)
    ours, article = same_weights(Attention(hidden), ArticleAttention(hidden), training=True)
    assert_same(ours, article, torch.randn(batch, tokens, hidden))


@pytest.mark.parametrize("seed", range(60))
def test_mlp_attention_is_the_article_s(seed: int) -> None:
    r = random.Random(1000 + seed)
    batch, tokens = r.randint(1, 5), r.randint(1, 12)
    widths = r.randint(1, 16), r.randint(1, 24), r.randint(1, 16)
    ours, article = same_weights(MLPAttention(*widths), ArticleMLP(*widths), training=True)
    assert_same(ours, article, torch.randn(batch, tokens, widths[0]))


@pytest.mark.parametrize("seed", range(5))
def test_the_old_softmax_over_the_batch_would_be_caught(seed: int) -> None:
    case = SKCase(6, (1, 3), 2, 1, 4, batch=1 + seed % 2, height=4, width=4, training=True)
    with pytest.raises(AssertionError):
        assert_same(*case.pair(axis=BATCH_AXIS), case.x())


def test_the_old_module_weighs_every_branch_with_1_at_batch_1() -> None:
    case = SKCase(6, (1, 3), 2, 1, 4, batch=1, height=4, width=4, training=False)
    ours, old = case.pair(axis=BATCH_AXIS)
    x = case.x()
    plain_sum = torch.stack([branch(x) for branch in old.get_submodule("convs").children()]).sum(0)
    torch.testing.assert_close(old(x), plain_sum)
    assert not torch.allclose(ours(x), plain_sum, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kernels", [(1, 3), (1, 3, 5, 7)])
def test_the_switch_gives_the_old_function(kernels: tuple[int, ...]) -> None:
    case = SKCase(6, kernels, 2, 1, 4, batch=3, height=4, width=4, training=True)
    ours = SKAttention(6, kernels, 2, 1, 4, softmax_over="batch")
    assert_same(*same_weights(ours, ArticleSK(6, kernels, 2, 1, 4, BATCH_AXIS), training=True), case.x())


def finite_differences_agree(module: nn.Module, x: Tensor) -> bool:
    """Gradcheck over the input and every parameter, in float64."""
    inputs = with_parameters(module.double(), x.double())
    function = as_function(module)

    def call(*tensors: Tensor) -> Tensor:
        return function(dict(zip(inputs, tensors, strict=True)))

    return torch.autograd.gradcheck(call, [v.clone().requires_grad_() for v in inputs.values()])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kernels", [(1, 3), (3,), (1, 3, 5)], ids=str)
def test_sk_attention_finite_differences(kernels: tuple[int, ...], training: bool) -> None:
    module = SKAttention(2, kernels, reduction=1, L=2).train(training)
    assert finite_differences_agree(module, torch.randn(2, 2, 3, 2))


@pytest.mark.parametrize("module", [Attention(3), MLPAttention(3, 4, 2)], ids=["Attention", "MLPAttention"])
def test_attention_finite_differences(module: nn.Module) -> None:
    perturb(module)
    assert finite_differences_agree(module, torch.randn(2, 3, 3))


def test_default_sk_attention_has_the_article_s_size_and_keys() -> None:
    with torch.device("meta"):
        ours, article = SKAttention(), ArticleSK(512, [1, 3, 5, 7], 16, 1, 32)
    assert sum(p.numel() for p in ours.parameters()) == 22_110_240
    assert list(ours.state_dict()) == list(article.state_dict())
    assert [tuple(v.shape) for v in ours.state_dict().values()] == [
        tuple(v.shape) for v in article.state_dict().values()
    ]


# The names by hand: checkpoints of other people have them.
def test_anchor_keys() -> None:
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = [f"convs.{i}.{n}" for i in (0, 1) for n in ["conv.weight", "conv.bias", *(f"bn.{k}" for k in bn)]]
    expected += ["fc.weight", "fc.bias", "fcs.0.weight", "fcs.0.bias", "fcs.1.weight", "fcs.1.bias"]
    assert list(SKAttention(8, [1, 3]).state_dict()) == expected
    expected = [f"{n}.{k}" for n in ("linear1", "linear2", "attention.attn") for k in ("weight", "bias")]
    assert list(MLPAttention(2, 3, 4).state_dict()) == expected


def test_state_dicts_load_strictly_both_ways_and_incomplete_ones_do_not() -> None:
    ours, article = SKAttention(8, (1, 3), 2, 2, 4), ArticleSK(8, (1, 3), 2, 2, 4)
    article.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(article.state_dict(), strict=True)
    incomplete = {k: v for k, v in article.state_dict().items() if k != "fcs.1.bias"}
    with pytest.raises(RuntimeError, match=r"fcs\.1\.bias"):
        ours.load_state_dict(incomplete)


def test_the_article_s_example_shape() -> None:
    module = SKAttention(channel=512, kernels=[1, 3], reduction=8, group=32).eval()
    assert module.d == 64
    assert module(torch.randn(2, 512, 7, 7)).shape == (2, 512, 7, 7)
