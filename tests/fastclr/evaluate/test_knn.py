"""Weighted kNN against a transcription of the paper's sentence as loops."""

import math

import pytest
import torch

from fastclr.evaluate import knn as knn_module
from fastclr.evaluate import knn_accuracy, knn_predict


def loops(train, train_labels, test, k: int, temperature: float) -> list[int]:
    """Wu et al. 2018, section 3.4, one test sample and one vote at a time, in float64."""
    predictions = []
    for query in test.double():
        cosine = [float(query @ key / (query.norm() * key.norm())) for key in train.double()]
        votes = dict.fromkeys(range(int(train_labels.max()) + 1), 0.0)
        for i in sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]:
            votes[int(train_labels[i])] += math.exp(cosine[i] / temperature)
        predictions.append(max(votes, key=lambda label: votes[label]))
    return predictions


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(3)
    # 37, 11 and 5: no two sizes alike, so that a swapped dimension shows
    train, test = torch.randn(37, 5, generator=generator), torch.randn(11, 5, generator=generator)
    return train, torch.randint(0, 4, (37,), generator=generator), test


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 1.0), (37, 0.02), (37, 5.0)])
def test_equals_the_loops(points, k, temperature):
    train, labels, test = points
    predicted = knn_predict(train, labels, test, k=k, temperature=temperature)
    assert predicted.tolist() == loops(train, labels, test, k, temperature)


def test_accuracy_is_the_share_of_right_predictions(points):
    train, labels, test = points
    right = knn_predict(train, labels, test, k=5)
    wrong_at_three = right.clone()
    wrong_at_three[:3] = (right[:3] + 1) % 4
    assert knn_accuracy(train, labels, test, right, k=5) == 1.0
    assert knn_accuracy(train, labels, test, wrong_at_three, k=5) == pytest.approx(8 / 11)


def test_lengths_of_features_and_order_of_samples_do_not_matter(points):
    train, labels, test = points
    expected = knn_predict(train, labels, test, k=9).tolist()
    shuffle = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    stretched = train * torch.linspace(0.1, 50, 37)[:, None]
    assert knn_predict(stretched[shuffle], labels[shuffle], test * 7, k=9).tolist() == expected


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_chunks_change_nothing(points, monkeypatch, rows):
    train, labels, test = points
    expected = knn_predict(train, labels, test, k=9).tolist()
    monkeypatch.setattr(knn_module, "SIMILARITY_BYTES", rows * 4 * len(train))
    assert next(len(chunk) for chunk, _ in knn_module.nearest(train, test, 9)) == rows
    assert knn_predict(train, labels, test, k=9).tolist() == expected


def test_a_cold_vote_is_the_nearest_neighbour(points):
    """exp(s/T) at T = 1e-6 is beyond float64, and exp((s − 1)/T) is 0 for every neighbour."""
    train, labels, test = points
    assert knn_predict(train, labels, test, k=37, temperature=1e-6).tolist() == loops(
        train, labels, test, 1, 1
    )


def test_k_is_capped_with_a_warning(points):
    train, labels, test = points
    with pytest.warns(UserWarning, match="k = 200 capped at the 37 training samples"):
        capped = knn_predict(train, labels, test)
    assert capped.tolist() == knn_predict(train, labels, test, k=37).tolist()


def test_what_does_not_fit_is_refused(points):
    train, labels, test = points
    missing = labels.clone()
    missing[4] = -1
    right = torch.zeros(11, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 of 37 training samples have no label"):
        knn_accuracy(train, missing, test, right)
    with pytest.raises(ValueError, match="11 of 11 test samples have no label"):
        knn_accuracy(train, labels, test, right - 1)
    with pytest.raises(ValueError, match="test set has class 9, the training set only 0…3"):
        knn_accuracy(train, labels, test, right + 9)
    with pytest.raises(ValueError, match="5 features, test images 3"):
        knn_accuracy(train, labels, test[:, :3], right)
    with pytest.raises(ValueError, match="37 training features but 36"):
        knn_accuracy(train, labels[1:], test, right)
    with pytest.raises(ValueError, match="at least 1 neighbour, got 0"):
        knn_accuracy(train, labels, test, right, k=0)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        knn_accuracy(train, labels, test, right, temperature=0)
    with pytest.raises(ValueError, match="no test samples"):
        knn_accuracy(train, labels, test[:0], right[:0])
