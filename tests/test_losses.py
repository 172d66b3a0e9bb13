"""The image loss is the Bernoulli divergence that it says, with finite gradients everywhere."""

import torch

from visionflow_hf.modeling.losses import HALF_LEVEL, fmri_loss, image_loss


def images():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, 5)
    x[0], x[1, 0] = 0, 1
    return torch.rand(2, 3, 2, 4, 5), x


def test_it_is_the_divergence_of_two_bernoulli_distributions():
    image, x = images()
    rows = torch.tensor([[True, True, False], [False, True, False]])
    p = HALF_LEVEL + (1 - 2 * HALF_LEVEL) * image
    one, other = (torch.distributions.Bernoulli(probs=probs) for probs in (x.expand_as(p), p))
    expected = torch.distributions.kl_divergence(one, other).flatten(2).mean(2)
    torch.testing.assert_close(image_loss(image, x, rows), expected[rows].mean())


def test_its_gradient_is_finite_where_images_are_black_or_white():
    image, x = images()
    image[:, 0], image[:, 1] = 0, 1
    image.requires_grad_()
    image_loss(image, x, torch.ones(2, 3, dtype=torch.bool)).backward()
    assert torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0


def test_a_perfect_image_costs_next_to_nothing():
    _, x = images()
    assert 0 <= image_loss(x[None], x, torch.ones(1, 3, dtype=torch.bool)) < 0.01


def test_many_voxels_are_counted_exactly_in_half_precision():
    voxels = 15_724  # 15,744 in bfloat16
    fmri = torch.ones(1, voxels, dtype=torch.bfloat16)
    loss = fmri_loss(torch.zeros_like(fmri), fmri, torch.tensor([voxels]), torch.tensor([True]))
    assert loss.item() == 1
