"""Readable reference modules of what small models are built from, and two conversions of trained models.

Attention in which several query heads share a key/value head (grouped-query attention), Gemma 2's attention with
soft-capped scores and a sliding window, a sparse mixture of experts with its load-balancing loss. Weight names are
Llama's, so weights of a real layer load as they are, and the tests hold every module against transformers' own with a
largest difference of 1e-5. What the library adds is speed: fused kernels, a cache that grows in place, experts in one
tensor. Here each step is a line, the scores of all pairs of tokens are kept, and rotary embeddings are the plain ones
(no scaling for long contexts as in Llama 3.2 or Phi-3's 128K model). The lesson with the steps by hand is lesson 03.

The conversions change a model in place: `mha_to_gqa` merges key/value heads and loses quality, which training has to
win back; `upcycle_to_moe` copies feed-forward blocks into experts and changes no output at all.

Sources: grouped-query attention, Ainslie et al. 2023 (arXiv 2305.13245); rotary embeddings, Su et al. 2021 (arXiv
2104.09864); Gemma 2, 2024 (arXiv 2408.00118); Mixtral, Jiang et al. 2024 (arXiv 2401.04088); load balancing, Fedus et
al. 2021 (arXiv 2101.03961); upcycling, Komatsuzaki et al. 2022 (arXiv 2212.05055). Shapes: B sequences, T new tokens,
S tokens with those in the cache, H hidden size, D size of a head, E experts.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import kv_cache_bytes  # noqa: F401 - what attention keeps, counted where the rest of the memory is

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KeysValues = tuple[Tensor, Tensor]  # each (B, key/value heads, S, D), the keys already rotated


def rotary(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Rotate each head's vectors by an angle that grows with the token's position. Built by hand in lesson 03.

    Component i of the first half of a head and component i of its second half are the two coordinates of a point, turned
    by position · theta^(-2i/D) (RoFormer, section 3.2.2, with the pairs that Llama uses; the paper pairs neighbours).

    Args:
        x: queries or keys, shape (B, heads, T, D) with an even D.
        positions: shape (T,).
    """
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[:, None].float() * speed  # (T, D / 2); in fp32, because bf16 cannot count past 256
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_mask(queries: int, keys: int | None = None, window: int | None = None) -> Tensor:
    """Which keys each query may see: boolean, shape (queries, keys), True where it may. Built by hand in lesson 03.

    The queries are the last of the keys' tokens, as in decoding with a cache. With a window, a token sees exactly
    `window` keys, itself among them (fewer at the start): key > query - window, as in transformers' `masking_utils`.

    Raises:
        ValueError: more queries than keys, or a window below 1.
    """
    keys = queries if keys is None else keys
    if queries > keys:
        raise ValueError(f"queries is {queries} and keys is {keys}; queries are the last of the keys, so never more")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 (a token sees itself), or None for no window")
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """cap · tanh(scores / cap), never beyond ±cap (arXiv 2408.00118, section 2). Built by hand in lesson 03."""
    return cap * torch.tanh(scores / cap)


class GroupedQueryAttention(nn.Module):
    """Causal attention in which num_heads / num_kv_heads query heads share each key/value head. Built by hand in lesson 03.

    num_kv_heads equal to num_heads is multi-head attention, 1 is multi-query attention. The state dict is that of
    transformers' `LlamaAttention`, or with `qkv_bias` of `Qwen2Attention`.

    Args:
        head_dim: D; hidden_size / num_heads by default.
        rope_theta: base of the rotary embedding.
        qkv_bias: biases in q, k and v, as in Qwen 2.5.

    Raises:
        ValueError: num_kv_heads does not divide num_heads, or D is missing or odd.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int | None = None,
                 rope_theta: float = 10_000.0, qkv_bias: bool = False) -> None:
        super().__init__()
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads is {num_kv_heads}; it must divide num_heads, {num_heads}")
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(f"hidden_size is {hidden_size}, no multiple of num_heads, {num_heads}; give head_dim")
        self.head_dim = head_dim or hidden_size // num_heads
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; it must be even, for rotary embeddings turn pairs")
        self.num_heads, self.num_kv_heads, self.rope_theta = num_heads, num_kv_heads, rope_theta
        self.scale, self.window = self.head_dim**-0.5, None
        self.q_proj = nn.Linear(hidden_size, num_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor, past: KeysValues | None = None,
                padding: Tensor | None = None) -> tuple[Tensor, KeysValues]:
        """Attend from T new tokens to these and to those before them.

        Args:
            hidden: shape (B, T, H).
            past: what the call for the tokens before returned; None at the start.
            padding: shape (B, S), True for real tokens, False for padding (of all S tokens, the cached ones too).

        Returns:
            The output (B, T, H), and the keys and values of all S tokens for the next call.
        """
        queries, keys, values = (self._split(layer(hidden)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        start = 0 if past is None else past[0].shape[2]
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)
        queries, keys = (rotary(x, positions, self.rope_theta) for x in (queries, keys))
        if past is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (keys, values), strict=True))
        visible = causal_mask(queries.shape[2], keys.shape[2], self.window).to(hidden.device)
        if padding is not None:
            visible = visible & padding[:, None, None, :].bool()
        group = self.num_heads // self.num_kv_heads
        scores = self._scores(queries, keys.repeat_interleave(group, dim=1))
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)  # -inf would make NaN of a padding row
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        mixed = weights @ values.repeat_interleave(group, dim=1)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (keys, values)

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores before the mask, from (B, heads, T, D) and (B, heads, S, D) to (B, heads, T, S)."""
        return queries @ keys.transpose(-1, -2) * self.scale

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, heads · D) → (B, heads, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class SoftCapAttention(GroupedQueryAttention):
    """Gemma 2's attention: a head size and a query scale of their own, soft-capped scores, perhaps a window.

    The state dict is that of transformers' `Gemma2Attention`. The cap comes before the mask: capped after it, a hidden
    key would get the score -cap and a small weight. Built by hand in lesson 03. Source: arXiv 2408.00118, section 2.

    Args:
        head_dim: D, apart from hidden_size / num_heads (Gemma 2 2B: 256, not 2304 / 8 = 288).
        query_pre_attn_scalar: scores are scaled by its inverse square root.
        cap: scores stay within ±cap.
        sliding_window: keys that a token sees, itself included; None for a global layer.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, query_pre_attn_scalar: float,
                 cap: float = 50.0, sliding_window: int | None = None, rope_theta: float = 10_000.0) -> None:
        super().__init__(hidden_size, num_heads, num_kv_heads, head_dim, rope_theta)
        if not (cap > 0 and query_pre_attn_scalar > 0):
            raise ValueError(f"cap is {cap} and query_pre_attn_scalar is {query_pre_attn_scalar}; both must be above 0")
        self.scale, self.window, self.cap = query_pre_attn_scalar**-0.5, sliding_window, cap

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """As in grouped-query attention, then capped."""
        return soft_cap(super()._scores(queries, keys), self.cap)


def mha_to_gqa(module: nn.Module, num_kv_heads: int) -> nn.Module:
    """Merge key/value heads in every attention layer of `module`, in place: each new head is the mean of neighbours.

    Works on one attention layer and on a whole model with Llama's names (k_proj, v_proj), whose configuration then
    follows, so that it can be saved and loaded. The model is worse at once and needs training (the paper: 5 % of the
    pretraining). Built by hand in lesson 03. Source: Ainslie et al. 2023, arXiv 2305.13245, section 2.1.

    Args:
        num_kv_heads: must divide the present number; 1 gives multi-query attention.

    Returns:
        `module` itself.

    Raises:
        ValueError: no attention layer with k_proj and v_proj in `module`, or a count that does not divide the present one.
    """
    layers = [part for part in module.modules() if hasattr(part, "k_proj") and hasattr(part, "v_proj")]
    if not layers:
        raise ValueError(f"module is a {type(module).__name__} without k_proj and v_proj; it must be, or hold, "
                         "attention layers with Llama's names (Phi-3 fuses q, k and v into one)")
    present = {layer.k_proj.out_features // layer.head_dim for layer in layers}
    if num_kv_heads < 1 or any(heads % num_kv_heads for heads in present):
        raise ValueError(f"num_kv_heads is {num_kv_heads}; it must divide the present {', '.join(map(str, sorted(present)))}")
    for layer in layers:
        for projection in (layer.k_proj, layer.v_proj):
            _merge_heads(projection, num_kv_heads, layer.head_dim)
        if isinstance(layer, GroupedQueryAttention):
            layer.num_kv_heads = num_kv_heads
        else:
            layer.num_key_value_groups = layer.q_proj.out_features // layer.head_dim // num_kv_heads
    if hasattr(module, "config") and module not in layers:  # a layer shares its config with the model around it
        module.config.num_key_value_heads = num_kv_heads
    return module


def _merge_heads(projection: nn.Linear, heads: int, head_dim: int) -> None:
    """Replace the (old heads · D) rows of a projection by the means of `heads` groups of neighbouring heads."""
    for name, value in list(projection.named_parameters()):
        groups = value.detach().unflatten(0, (heads, -1, head_dim))  # (heads, old heads a group, D, …)
        setattr(projection, name, nn.Parameter(groups.mean(1).flatten(0, 1), requires_grad=value.requires_grad))
    projection.out_features = heads * head_dim


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), with the state dict of `LlamaMLP`. Built by hand in lesson 03.

    Source: Shazeer 2020, arXiv 2002.05202, section 2.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) → (…, H)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseMoE(nn.Module):
    """A feed-forward block of E experts, of which a router lets top_k compute each token. Built by hand in lesson 03.

    y = Σ_i G(x)_i E_i(x), where G is the softmax over all router logits, cut to its top_k largest entries and divided by
    their sum (Mixtral, arXiv 2401.04088, section 2.1). All experts stay in memory; a token pays for top_k of them.

    Attributes:
        router_logits: of the last call, shape (tokens, E), for `load_balancing_loss`; None before the first.

    Raises:
        ValueError: top_k is not between 1 and num_experts.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int = 2) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k is {top_k}; it must be between 1 and num_experts, {num_experts}")
        self.top_k, self.router_logits = top_k, None
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(hidden_size, intermediate_size) for _ in range(num_experts))

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) → (…, H)."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        self.router_logits = self.router(tokens)
        gates, chosen = self.router_logits.softmax(-1, dtype=torch.float32).topk(self.top_k)  # (tokens, top_k) each
        gates = (gates / gates.sum(-1, keepdim=True)).to(hidden.dtype)
        output = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)  # an expert computes only the tokens that chose it
            output.index_add_(0, token, gates[token, place, None] * expert(tokens[token]))
        return output.view_as(hidden)


def load_balancing_loss(router_logits: Tensor, top_k: int) -> Tensor:
    """E · Σ_i f_i P_i: small when the tokens spread evenly over the experts. The third exercise of lesson 03.

    f_i is the share of tokens that choose expert i among their top_k (the f sum to top_k), P_i the mean of its softmax
    probability; only P has a gradient. An even router gives top_k, one that sends every token to the same experts with
    certainty gives E. Switch Transformer, arXiv 2101.03961, equations 4 to 6; transformers' Mixtral counts the same way,
    for all layers together: hand it all layers' logits joined by `torch.cat`.

    Args:
        router_logits: shape (tokens, E).

    Returns:
        A scalar, in fp32.
    """
    probabilities = router_logits.softmax(-1, dtype=torch.float32)
    chosen = probabilities.topk(top_k).indices
    share = F.one_hot(chosen, router_logits.shape[-1]).sum(1).float().mean(0)
    return router_logits.shape[-1] * (share * probabilities.mean(0)).sum()


def upcycle_to_moe(model: PreTrainedModel, num_experts: int, top_k: int = 2,
                   layers: Iterable[int] | None = None) -> PreTrainedModel:
    """Replace feed-forward blocks by a `SparseMoE` of copies of each, in place: the output stays what it was.

    Gates sum to 1 and the experts start equal, so whatever the new, random router chooses, y is the old output up to
    rounding. Training then lets the experts differ. `from_pretrained` can't read the result back: transformers has no
    class for it. Built by hand in lesson 03. Source: Komatsuzaki et al. 2022, arXiv 2212.05055, section 3.

    Args:
        model: with decoder layers in `model.model.layers` whose feed-forward block is `mlp` (Llama, Qwen 2, Gemma 2, …).
        layers: numbers of the layers to convert, from 0; all by default.

    Returns:
        `model` itself.

    Raises:
        ValueError: a layer that is not there or has experts already, or a top_k that is not between 1 and num_experts.
    """
    every = model.model.layers
    chosen = sorted(set(range(len(every)) if layers is None else layers))
    for number in chosen:
        if not 0 <= number < len(every):
            raise ValueError(f"layers holds {number}; the model has layers 0 to {len(every) - 1}")
        if not hasattr(every[number].mlp, "down_proj"):
            raise ValueError(f"layers holds {number}, whose block is a {type(every[number].mlp).__name__}; only a dense "
                             "feed-forward block can be copied")
    for number in chosen:
        block, down = every[number].mlp, every[number].mlp.down_proj.weight  # down: (H, I)
        with torch.device("meta"):  # the experts are copies, so their random weights need not be made
            mixture = SparseMoE(*down.shape, num_experts, top_k)
        mixture.router = nn.Linear(down.shape[0], num_experts, bias=False, device=down.device, dtype=down.dtype)
        mixture.experts = nn.ModuleList(copy.deepcopy(block) for _ in range(num_experts))
        every[number].mlp = mixture.train(block.training)
    return model


def active_parameters(model: nn.Module) -> int:
    """Parameters that one token's forward pass uses: all but the experts that are not chosen (embeddings counted whole).

    Built by hand in lesson 03.
    """
    idle = 0
    for part in model.modules():
        if isinstance(part, SparseMoE):
            one = sum(weight.numel() for weight in part.experts[0].parameters())
            idle += (len(part.experts) - part.top_k) * one
    return sum(weight.numel() for weight in model.parameters()) - idle
