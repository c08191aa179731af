"""Features and hard negatives in a fit: what gets noise, what is said of it, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from plain_module import PlainModule, Recorder, fit
from torch import nn

from fanoise_lightning import FeatureTap
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.noise import noise_shape
from fanoise_lightning.seeds import derive_seed


def test_embeddings_and_labels_are_served_by_one_side():
    class Labelled(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(self.embed(batch[0]), torch.arange(len(batch[0])) % 2)

    class SupConLoss(nn.Module):
        def forward(self, embeddings, labels):
            self.seen = embeddings.detach()
            return (embeddings * (labels[:, None] - 0.5)).sum().square()

    with pytest.raises(
        ValueError, match=r"found `embeddings` alone in a call of SupConLoss(?s:.*)sides=\['query'\]"
    ):
        fit(Labelled(SupConLoss()), [FANoise()], max_steps=1)
    module = Labelled(SupConLoss())
    fit(module, [FANoise(alpha=1.0, sides=["query"])], max_steps=1)
    assert (module.criterion.seen.norm(dim=1) - 1).abs().max() > 0.01


def test_one_line_says_what_gets_noise(caplog):
    with caplog.at_level(logging.INFO):
        fit(PlainModule(), [FANoise(alpha=0.25)], max_steps=3)
    lines = [r.getMessage() for r in caplog.records if "FANoise" in r.getMessage()]
    assert lines == [
        "FANoise: sublinear noise, alpha=0.25, on `query` (query) and `target` (target) of 'criterion'"
    ]


def test_the_line_names_what_stays_clean(caplog):
    class Distilled(PlainModule):
        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            return self.criterion(query, target, query.detach())

    class DistilledLoss(nn.Module):
        def forward(self, query, target, teacher):
            return (query * target).sum() + (query - teacher).square().sum()

    with caplog.at_level(logging.INFO):
        fit(Distilled(DistilledLoss()), [FANoise(target="criterion")], max_steps=1)
    (line,) = [r.getMessage() for r in caplog.records if "FANoise" in r.getMessage()]
    assert line.endswith("of 'criterion'; `teacher` stays clean")


class TwoNetworks(PlainModule):
    """A student and a teacher without gradients; the loss takes lists of views, the teacher's first."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__(loss)
        self.teacher = nn.Linear(6, 8)

    def compute_loss(self, batch):
        with torch.no_grad():
            teacher = [self.teacher(x) for x in batch]
        return self.criterion(teacher, [self.embed(x) for x in batch])


class Distills(nn.Module):
    def forward(self, teacher_views, student_views):
        return sum(-(x.softmax(1) * y.log_softmax(1)).sum() for x in teacher_views for y in student_views)


def test_noise_on_a_teacher_alone_is_warned_of_once():
    with pytest.warns(UserWarning, match="FANoise") as warned:
        fit(TwoNetworks(Distills()), [FANoise(target="criterion", relative=True)], max_steps=3)
    (message,) = [str(w.message) for w in warned if "requires a gradient" in str(w.message)]
    assert "no argument of 'criterion' that gets noise requires a gradient" in message
    assert "stay clean: `student_views[0]`, `student_views[1]`." in message


def test_a_head_over_frozen_features_is_not_warned_of(recwarn):
    class Frozen(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            del self.criterion
            self.tap = FeatureTap()

        def compute_loss(self, batch):
            query, target = self.tap(*batch)
            return (self.embed(query) * self.embed(target)).sum()

    fit(Frozen(), [FANoise(relative=True)], max_steps=2)
    assert not [w for w in recwarn if "gradient" in str(w.message)]


def test_a_tap_whose_result_is_not_used_is_warned_of():
    class Forgets(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.tap = FeatureTap()

        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            self.tap(query, target)
            return self.criterion(query, target)

    with pytest.warns(UserWarning, match="FANoise") as warned:
        fit(Forgets(), [FANoise()], max_steps=3)
    said = [w for w in warned if "to the noisy features of 'tap', so" in str(w.message)]
    assert len(said) == 1


class Odd(PlainModule):
    """Calls its loss without features once, after two whole batches."""

    def __init__(self) -> None:
        super().__init__(Recorder())

    def compute_loss(self, batch):
        query, target = self.embed(batch[0]), self.embed(batch[1])
        if len(self.losses) == 2:
            return self.criterion(query[0], target[0])
        return self.criterion(query, target)


def test_a_call_without_features_later_on_passes_and_is_counted():
    callback = FANoise()
    with pytest.warns(UserWarning, match="left 1 training batches without noise"):
        fit(Odd(), [callback])
    assert callback._source.skipped == 1


def test_a_call_without_features_is_an_error_where_other_ranks_would_wait():
    with pytest.raises(ValueError, match="found none in a call of Recorder"):
        fit(Odd(), [FANoise(scope="global")])


def test_a_wrong_call_has_the_error_of_the_loss():
    class Wrong(PlainModule):
        def compute_loss(self, batch):
            return self.criterion(self.embed(batch[0]))

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'target'"):
        fit(Wrong(), [FANoise()], max_steps=1)


# Hard negatives


class WithNegatives(PlainModule):
    """The target side's embeddings are its rows; the negatives are other rows of the same text."""

    def __init__(self) -> None:
        class Keep(nn.Module):
            def forward(self, query, target, negatives):
                self.seen = [x.detach() for x in (query, target, negatives)]
                return (query * target).sum() + negatives.sum()

        super().__init__(Keep())

    def compute_loss(self, batch):
        self.clean = [self.embed(x) for x in (batch[0], batch[1], batch[1][:3] + 1)]
        return self.criterion(*self.clean)

    def noise(self) -> list[torch.Tensor]:
        return [noisy - clean.detach() for noisy, clean in zip(self.criterion.seen, self.clean)]


def test_hard_negatives_get_the_noise_of_the_targets_decomposed_together():
    module = WithNegatives()
    fit(module, [FANoise(alpha=1.0, seed=2)], max_steps=1)
    _, target, negatives = (x.detach() for x in module.clean)
    keys = torch.cat([target, negatives])
    generator = torch.Generator().manual_seed(derive_seed(2, 0, 0, 0, 0, 1))
    expected = noise_shape(keys).sample(keys, 1.0, generator)
    torch.testing.assert_close(torch.cat(module.noise()[1:]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["of each query", "a list"])
def test_hard_negatives_of_other_forms_keep_their_form(form):
    class Loss(nn.Module):
        def forward(self, query, target, negatives):
            self.seen = negatives
            return (query * target).sum() + sum(x.sum() for x in negatives)

    class Many(PlainModule):
        def compute_loss(self, batch):
            clean = [self.embed(batch[1][:4] + i) for i in range(2)]
            self.clean = torch.stack(clean, dim=1) if form == "of each query" else clean
            return self.criterion(self.embed(batch[0]), self.embed(batch[1]), self.clean)

    module = Many(Loss())
    fit(module, [FANoise(alpha=1.0)], max_steps=1)
    assert type(module.criterion.seen) is type(module.clean)
    for noisy, clean in zip(module.criterion.seen, module.clean):
        assert noisy.shape == clean.shape
        assert (noisy - clean).norm(dim=-1).min() > 0.1


def test_hard_negatives_stay_clean_on_demand():
    module = WithNegatives()
    fit(module, [FANoise(alpha=1.0, negatives=False)], max_steps=1)
    query, target, negatives = module.noise()
    assert query.abs().max() > 0.01
    assert target.abs().max() > 0.01
    assert not negatives.any()


def test_a_query_cannot_tell_its_target_from_a_hard_negative_by_the_noise():
    """With equal clean keys, target and negative must be noised alike: here by their mean energy."""
    energies = []

    class Keeping(WithNegatives):
        def training_step(self, batch, batch_idx):
            loss = self.compute_loss(batch)
            energies.append(self.noise())
            return loss

    fit(Keeping(), [FANoise(alpha=1.0, energy="constant", seed=0)], max_steps=60, max_epochs=-1)
    target, negative = (torch.cat([e[i] for e in energies]).square().sum(1) for i in (1, 2))
    error = (target.var() / len(target) + negative.var() / len(negative)).sqrt()
    assert (target.mean() - negative.mean()).abs() < 4 * error
    assert target.mean() == pytest.approx(1.0, rel=0.2)  # alpha^2
