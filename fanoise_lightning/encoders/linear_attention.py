"""Self-attention whose projections are plain linear layers, which LoRA can reach."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LinearAttention", "use_linear_attention"]


class LinearAttention(nn.Module):
    """``nn.MultiheadAttention`` for self-attention, with the same weights.

    The stock module reads the weights of its projections and never calls them, so an adapter on
    ``out_proj`` would do nothing. peft's own wrapper of the whole module merges the adapter into the weights
    and removes it again at every call: it supports neither dropout nor DoRA, its rounding errors add up in
    bfloat16, and (in peft 0.21) it applies the update of ``out_proj`` twice.

    Args:
        attention: the module to replace; its parameters are shared, not copied.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.dropout = attention.num_heads, attention.dropout
        self.batch_first = attention.batch_first
        width = attention.embed_dim
        bias = attention.in_proj_bias is not None
        self.in_proj = nn.Linear(width, 3 * width, bias=bias, device="meta")
        self.out_proj = nn.Linear(width, width, bias=bias, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend from (B, L, D), or (L, B, D), to itself: `query`, `key` and `value` are the same tensor."""
        x = query if self.batch_first else query.transpose(0, 1)
        # each (B, heads, L, D / heads)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, -1)
        )
        if attn_mask is not None:
            if attn_mask.dim() == 3:  # (B * heads, L, L)
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
            attn_mask = attn_mask.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def use_linear_attention(network: nn.Module) -> None:
    """Run the self-attention of every block of an open_clip model through layers that LoRA reaches."""
    from open_clip.transformer import ResidualAttentionBlock

    for module in network.modules():
        if isinstance(module, ResidualAttentionBlock) and not hasattr(module, "ln_1_kv"):
            module.attn = LinearAttention(module.attn)
        elif getattr(module, "q_bias", None) is not None and hasattr(module, "qkv_bias_separate"):
            # timm's EVA and BEiT, which otherwise read the weights of `qkv` and never call it
            module.qkv_bias_separate = True  # type: ignore[assignment]
