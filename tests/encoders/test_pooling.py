from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fanoise_lightning.encoders.pooling import last_token, mean_token

masks = st.integers(1, 5).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 1), min_size=length, max_size=length).filter(any), min_size=1, max_size=4
    )
)


def states(mask: torch.Tensor) -> torch.Tensor:
    return torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(0))


@given(masks)
def test_the_last_token_is_the_last_that_the_mask_keeps(rows):
    mask = torch.tensor(rows)
    hidden = states(mask)
    expected = [hidden[b, max(i for i, kept in enumerate(row) if kept)] for b, row in enumerate(rows)]
    assert torch.equal(last_token(hidden, mask), torch.stack(expected))


@given(masks)
def test_the_mean_is_over_what_the_mask_keeps(rows):
    mask = torch.tensor(rows)
    hidden = states(mask)
    expected = [hidden[b, mask[b].bool()].mean(dim=0) for b in range(len(rows))]
    torch.testing.assert_close(mean_token(hidden, mask), torch.stack(expected))


def test_nothing_of_the_padding_reaches_the_mean():
    hidden = torch.tensor([[[1.0], [3.0], [torch.nan]]])
    assert mean_token(hidden, torch.tensor([[1, 1, 0]])).item() == 2.0


def test_the_mean_of_bfloat16_states_is_taken_in_float32():
    hidden = torch.full((1, 1000, 1), 1.0, dtype=torch.bfloat16)
    hidden[0, 0] = 3.0
    pooled = mean_token(hidden, torch.ones(1, 1000, dtype=torch.long))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.item(), 1.002)
