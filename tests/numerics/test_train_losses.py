"""The chunked losses against the formulas written out, in float64."""

import pytest
import torch

from amnesia_bench.training.chunked_loss import chunked_cross_entropy, chunked_kl
from amnesia_bench.training.heads import Head

N, M, V = 23, 8, 41


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def naive_cross_entropy(hidden, head, targets):
    probability = (hidden @ head.T).exp()
    probability = probability / probability.sum(dim=1, keepdim=True)
    return -probability[torch.arange(len(targets)), targets].log().sum()


def naive_kl(hidden, head, their_hidden, their_head):
    p, q = ((h @ w.T).exp() for h, w in ((their_hidden, their_head), (hidden, head)))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return (p * (p / q).log()).sum()


def with_gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    (value * 0.37).backward()
    return value.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("rows", [1, 7, 23, 100])
def test_cross_entropy_and_its_gradients_equal_the_formula(rows):
    hidden, head = random(N, M, seed=0), random(V, M, seed=1)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(2))
    value, gradients = with_gradients(
        lambda h, w: chunked_cross_entropy(h, Head(w), targets, rows), hidden, head
    )
    expected, wanted = with_gradients(lambda h, w: naive_cross_entropy(h, w, targets), hidden, head)
    assert value.item() == pytest.approx(expected.item(), rel=1e-13)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 7, 23, 100])
def test_kl_and_its_gradients_equal_the_formula(rows):
    hidden, head = random(N, M, seed=0), random(V, M, seed=1)
    theirs = random(N, 5, seed=3), random(V, 5, seed=4)
    teacher = theirs[0], Head(theirs[1])
    value, gradients = with_gradients(
        lambda h, w: chunked_kl((h, Head(w)), teacher, rows), hidden, head
    )
    expected, wanted = with_gradients(lambda h, w: naive_kl(h, w, *theirs), hidden, head)
    assert value.item() == pytest.approx(expected.item(), rel=1e-13)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-13)


def test_gradients_hold_under_gradcheck():
    hidden, head = (random(6, 4, seed=0), random(9, 4, seed=1))
    teacher = random(6, 3, seed=2), Head(random(9, 3, seed=3))
    targets = torch.tensor([0, 8, 3, 3, 1, 7])
    leaves = hidden.requires_grad_(), head.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_cross_entropy(h, Head(w), targets, 4), leaves
    )
    assert torch.autograd.gradcheck(lambda h, w: chunked_kl((h, Head(w)), teacher, 4), leaves)


FORMS = [{"scale": 0.25}, {"cap": 2.0}, {"scale": 3.0, "cap": 1.5}]


@pytest.mark.parametrize("form", FORMS)
def test_scaled_and_capped_logits_with_a_bias_give_loss_and_gradients_of_the_formula(form):
    def formula(h, w, b):
        logits = (h @ w.T + b) * form.get("scale", 1.0)
        return form["cap"] * (logits / form["cap"]).tanh() if "cap" in form else logits

    hidden, head, bias = random(N, M, seed=0), random(V, M, seed=1), random(V, seed=5)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(2))
    theirs = random(N, 5, seed=3), random(V, 5, seed=4), random(V, seed=6)
    teacher = theirs[0], Head(theirs[1], theirs[2], **form)

    def ours(h, w, b):
        student = h, Head(w, b, **form)
        return chunked_cross_entropy(*student, targets, 7) + chunked_kl(student, teacher, 7)

    def wanted(h, w, b):
        q, p = (formula(*x).log_softmax(dim=1) for x in ((h, w, b), theirs))
        return -q[torch.arange(N), targets].sum() + (p.exp() * (p - q)).sum()

    value, gradients = with_gradients(ours, hidden, head, bias)
    expected, by_autograd = with_gradients(wanted, hidden, head, bias)
    assert value.item() == pytest.approx(expected.item(), rel=1e-13)
    for gradient, other in zip(gradients, by_autograd, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-11, atol=1e-12)


def test_no_position_is_a_loss_of_zero_with_gradients_of_zero():
    hidden, head = random(0, M, seed=0), random(V, M, seed=1)
    nothing = torch.empty(0, dtype=torch.int64)
    value, gradients = with_gradients(
        lambda h, w: chunked_cross_entropy(h, Head(w), nothing, 4), hidden, head
    )
    assert value.item() == 0
    assert gradients[0].shape == (0, M)
    assert not gradients[1].any()


def test_a_frozen_head_and_a_teacher_get_no_gradient():
    hidden, head = random(N, M, seed=0).requires_grad_(), random(V, M, seed=1)
    theirs = random(N, M, seed=2).requires_grad_(), random(V, M, seed=3).requires_grad_()
    teacher = theirs[0], Head(theirs[1])
    chunked_kl((hidden, Head(head)), teacher, 8).backward()
    assert hidden.grad is not None
    assert head.grad is theirs[0].grad is theirs[1].grad is None


def test_bfloat16_inputs_are_summed_in_float32():
    hidden, head = (random(N, M, seed=0).bfloat16(), random(V, M, seed=1).bfloat16())
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(2))
    value, gradients = with_gradients(
        lambda h, w: chunked_cross_entropy(h, Head(w), targets, 5), hidden, head
    )
    assert value.dtype == torch.float32
    logits = (hidden @ head.T).float()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2


def test_kl_can_be_as_imprecise_as_the_released_code():
    student = random(N, M, seed=0).float(), Head(random(V, M, seed=1).float())
    teacher = random(N, M, seed=2).float(), Head(random(V, M, seed=3).float())
    precise = chunked_kl(student, teacher, 5)
    rounded = chunked_kl(student, teacher, 5, torch.bfloat16)
    assert rounded != precise
    assert rounded.item() == pytest.approx(precise.item(), rel=0.02)
    assert rounded.item() == rounded.bfloat16().item()


def test_float32_is_precise_for_a_large_vocabulary() -> None:
    large = torch.randn(262_144, M, generator=torch.Generator().manual_seed(0))
    rows = random(N, M, seed=1).float().requires_grad_()
    answers = torch.arange(N)
    logits = (rows @ large.mT).double()
    wanted = torch.nn.functional.cross_entropy(logits, answers, reduction="sum")
    (gradient,) = torch.autograd.grad(wanted, rows)
    found = chunked_cross_entropy(rows, Head(large), answers, 7)
    (by_us,) = torch.autograd.grad(found, rows)
    assert found.item() == pytest.approx(wanted.item(), rel=5e-7)
    assert float((by_us - gradient).norm() / gradient.norm()) < 2e-6
