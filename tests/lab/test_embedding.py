import math

import pytest
import torch
from torch.nn import functional as F

from renorm.lab.tasks.embedding import contrastive, recall_at_1

NUMBERS = torch.arange(5)


def test_recall_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.5])
    vectors = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1], [9], [2], [3], [4]])
    # nearest by the cosine: 0 -> 1, 1 -> 0, 2 -> 1, 3 -> 4, 4 -> 3
    assert recall_at_1(vectors, torch.tensor([0, 0, 0, 1, 1]), NUMBERS) == 1
    assert recall_at_1(vectors, torch.tensor([0, 0, 1, 1, 1]), NUMBERS) == 4 / 5
    assert recall_at_1(vectors, torch.tensor([0, 1, 0, 2, 3]), NUMBERS) == 0


def test_an_image_drawn_twice_is_no_neighbour_of_itself() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    labels = torch.tensor([0, 0, 1])
    assert recall_at_1(vectors, labels, torch.arange(3)) == 2 / 3
    assert recall_at_1(vectors, labels, torch.tensor([0, 0, 1])) == 0
    assert recall_at_1(vectors, torch.zeros(3), torch.zeros(3)) == 0  # no other image at all


def test_the_loss_is_the_papers_sum() -> None:
    vectors, labels = torch.randn(6, 3, dtype=torch.float64), [0, 0, 1, 1, 1, 2]
    unit = F.normalize(vectors).tolist()
    terms = []
    for i, own in enumerate(labels):
        s = {
            j: sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / 0.1
            for j in range(6)
            if j != i
        }
        total = sum(math.exp(value) for value in s.values())
        partners = [j for j in s if labels[j] == own]
        if partners:
            terms.append(-sum(s[j] - math.log(total) for j in partners) / len(partners))
    expected = sum(terms) / len(terms)
    assert contrastive(vectors, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-10)


def test_the_loss_is_0_where_every_image_is_alone_in_its_class() -> None:
    vectors = torch.randn(4, 3, requires_grad=True)
    loss = contrastive(vectors, torch.arange(4))
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert loss.item() == 0
    assert not gradient.any()


def test_gradients_are_finite_and_right() -> None:
    vectors = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda v: contrastive(v, labels), vectors)
