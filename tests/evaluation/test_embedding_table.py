from __future__ import annotations

import warnings

import pytest
import torch
from evaluation.subsets import expected, subset
from torch.nn.functional import normalize

from fanoise_lightning.evaluation.embedding_table import EmbeddingTable
from fanoise_lightning.evaluation.precision_at_one import PrecisionAtOne, score_subset


def test_subsets_score_on_a_shared_table_what_they_score_alone() -> None:
    """Two subsets whose items are 60 of 100, in different orders, 20 of them the same."""
    generator = torch.Generator().manual_seed(5)
    everything = normalize(torch.randn(100, 8, generator=generator), dim=1)
    order = torch.randperm(100, generator=generator)
    table = EmbeddingTable(num_items=100)
    for index in torch.randperm(100, generator=generator).split(17):
        table.update(everything[index], index)
    for seed, items in enumerate((order[:60], order[40:].flip(0))):
        queries, candidates, _ = subset(seed=seed)
        result = score_subset(table.compute().select(items), queries, candidates)
        assert result.precision == pytest.approx(expected(queries, candidates, everything[items]))
        metric = PrecisionAtOne(queries, candidates)
        metric.update(everything[items], torch.arange(60))
        metric.compute()
        assert result == metric.result


def test_an_item_that_never_arrived_is_no_candidate_and_padding_is_none_either() -> None:
    """Neither takes the embedding of another item: here that of item 2, the last, which would win."""
    table = EmbeddingTable(num_items=4)
    table.update(torch.tensor([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]]), torch.tensor([0, 1, 3]))
    with pytest.warns(UserWarning, match="1 of 3 texts and images"):
        result = score_subset(table.compute(), torch.tensor([0]), torch.tensor([[1, 2, -1]]))
    assert result == (1.0, 1, 0, 0)


def test_only_the_items_of_a_subset_count_as_missing() -> None:
    table = EmbeddingTable(num_items=10)
    table.update(torch.eye(3), torch.tensor([0, 4, 9]))
    embeddings = table.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_subset(embeddings, torch.tensor([0]), torch.tensor([[4, 9, -1]]))
    with pytest.warns(UserWarning, match="subset 'b': 2 of 4 texts and images have no embedding"):
        score_subset(embeddings, torch.tensor([0, 0]), torch.tensor([[4, 5], [4, 6]]), "b")


def test_an_item_that_the_table_does_not_have_is_an_error() -> None:
    table = EmbeddingTable(num_items=2, owner="the suite")
    table.update(torch.eye(2), torch.tensor([0, 2]))
    with pytest.raises(
        ValueError, match="the suite has the items 0 to 1, got embeddings of the items 0 to 2"
    ):
        table.compute()


def test_the_embeddings_are_held_once() -> None:
    table = EmbeddingTable(num_items=60)
    for index in torch.arange(60).split(7):
        table.update(torch.eye(8, dtype=torch.bfloat16)[index % 8], index)
    embeddings = table.compute()
    (held,) = table.embeddings
    assert held.data_ptr() == embeddings.rows.data_ptr() == embeddings.select(torch.arange(3)).rows.data_ptr()
    assert (embeddings.rows.shape, embeddings.rows.dtype) == ((60, 8), torch.float32)


def test_batches_of_different_dimensions_are_refused() -> None:
    """2 x 4 and 2 x 2 numbers would pass for 4 x 3."""
    table = EmbeddingTable(num_items=4, owner="the suite")
    table.update(torch.empty(0, 2), torch.empty(0, dtype=torch.long))
    table.update(torch.eye(4)[:2], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="these embeddings have 2 dimensions, those before had 4"):
        table.update(torch.eye(2), torch.tensor([2, 3]))
    assert table.compute().rows.shape == (2, 4)


@pytest.mark.parametrize("length", [2.0, 0.98, 1e-9])
def test_embeddings_that_were_not_normalised_are_refused(length: float) -> None:
    table = EmbeddingTable(num_items=9, owner="the suite")
    table.update(torch.eye(3), torch.tensor([0, 1, 2]))
    table.update(length * torch.eye(3)[:2], torch.tensor([7, 8]))
    message = rf"the suite: 2 embeddings are not of unit length \(that of item 7 has {length:.4g}\)"
    with pytest.raises(ValueError, match=message):
        table.compute()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_16_bits_round_to_and_zero_are_embeddings(dtype: torch.dtype) -> None:
    rows = normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype), dim=1)
    rows[3] = 0
    table = EmbeddingTable(num_items=50)
    table.update(rows, torch.arange(50))
    assert table.compute().rows.equal(rows.float())
