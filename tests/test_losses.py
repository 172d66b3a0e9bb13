"""The image loss is the Bernoulli divergence that it says, and so is its gradient, however many rows go at a time."""

import pytest
import torch
from visionflow_hf.modeling import losses
from visionflow_hf.modeling.losses import HALF_LEVEL, BernoulliDivergence, image_loss


@pytest.fixture(params=[80, 160, losses.VALUES_AT_ONCE], autouse=True)
def rows_at_a_time(request, monkeypatch):
    """One, two and all: a row has 80 values in its two reconstructions."""
    monkeypatch.setattr(losses, "VALUES_AT_ONCE", request.param)


def images(dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, 5, dtype=dtype)
    x[0], x[1, 0] = 0, 1
    return torch.rand(2, 3, 2, 4, 5, dtype=dtype), x


def test_it_is_the_divergence_of_two_bernoulli_distributions():
    image, x = images()
    rows = torch.tensor([[True, True, False], [False, True, False]])
    p = HALF_LEVEL + (1 - 2 * HALF_LEVEL) * image
    one, other = (torch.distributions.Bernoulli(probs=probs) for probs in (x.expand_as(p), p))
    expected = torch.distributions.kl_divergence(one, other).flatten(2).mean(2)
    torch.testing.assert_close(BernoulliDivergence.apply(image, x), expected)
    torch.testing.assert_close(image_loss(image, x, rows), expected[rows].mean())


def test_its_gradient_is_right_even_where_images_are_black_or_white():
    image, x = images(torch.float64)
    image[:, 0], image[:, 1] = 0, 1
    inside = (0.1 + 0.8 * image).requires_grad_()  # a finite difference must not leave 0..1
    assert torch.autograd.gradcheck(lambda one: BernoulliDivergence.apply(one, x), (inside,))
    at_ends = image.clone().requires_grad_()
    BernoulliDivergence.apply(at_ends, x).sum().backward()
    assert torch.isfinite(at_ends.grad).all()


def test_a_perfect_image_costs_next_to_nothing():
    _, x = images()
    assert 0 <= BernoulliDivergence.apply(x[None], x).max() < 0.01
