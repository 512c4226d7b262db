"""Readable reference versions of the parts of small language models, built by hand in lesson 03.

Weights of trained layers load unchanged, because the names are Llama's; tests hold outputs within 1e-5 of
transformers. There are no fused kernels, attention keeps the scores of all token pairs, and rotary embeddings
lack Llama 3.2's long-context scaling. Shapes: B sequences, T new tokens, S tokens with the cached ones, H
hidden size, D head size, E experts. Sources (arXiv): GQA 2305.13245, RoFormer 2104.09864, Gemma 2 2408.00118,
SwiGLU 2002.05202, Mixtral 2401.04088, Switch Transformer 2101.03961, upcycling 2212.05055.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KeysValues = tuple[Tensor, Tensor]  # each (B, key/value heads, S, D), the keys already rotated


def rotary(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Rotate queries or keys x (B, heads, T, D) by angles proportional to the token positions (T,).

    Components i and i + D/2 (D even) form a point, which turns by position · theta^(-2i/D) radians (RoFormer,
    section 3.2.2). The paper pairs neighbouring components; this pairing is Llama's.
    """
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[:, None].float() * speed  # (T, D / 2); in fp32, because bf16 cannot count past 256
    cos, sin = (turn(angle).to(x.dtype) for turn in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_mask(queries: int, keys: int | None = None, window: int | None = None) -> Tensor:
    """Return which keys each query may see: boolean, shape (queries, keys), True where it may.

    The queries are the last tokens of the keys, as in decoding with a cache. With a window, a token sees at
    most `window` keys, itself included, as in transformers' `masking_utils`.

    Raises:
        ValueError: more queries than keys, or a window below 1.
    """
    keys = queries if keys is None else keys
    if queries > keys:
        raise ValueError(f"queries is {queries} and keys is {keys}; queries are the last keys, so never more")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 (a token sees itself), or None")
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(scores / cap), which never exceeds ±cap (Gemma 2, section 2)."""
    return cap * torch.tanh(scores / cap)


class GroupedQueryAttention(nn.Module):
    """Causal attention in which num_heads / num_kv_heads query heads share each key/value head.

    With num_kv_heads equal to num_heads this is multi-head attention, with 1 multi-query attention.
    `head_dim` (D) is hidden_size / num_heads by default. The state dict is that of transformers'
    `LlamaAttention`, or of `Qwen2Attention` with `qkv_bias`.

    Raises:
        ValueError: num_kv_heads does not divide num_heads, or D is missing or odd.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int | None = None,
                 rope_theta: float = 10_000.0, qkv_bias: bool = False) -> None:
        super().__init__()
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads is {num_kv_heads}; it must divide num_heads, {num_heads}")
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(f"hidden_size is {hidden_size}, no multiple of num_heads; give head_dim")
        self.head_dim = head_dim or hidden_size // num_heads
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; it must be even: rotary embeddings turn pairs")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.rope_theta = rope_theta
        self.scale = self.head_dim**-0.5
        self.window: int | None = None
        self.q_proj = nn.Linear(hidden_size, num_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor, past: KeysValues | None = None,
                padding: Tensor | None = None) -> tuple[Tensor, KeysValues]:
        """Attend from the T new tokens, hidden (B, T, H), to themselves and to all earlier tokens.

        Return the output (B, T, H) and the keys and values of all S tokens, which the next call takes as
        `past`. `padding` has the shape (B, S) and is True for real tokens, False for padding.
        """
        projections = (self.q_proj, self.k_proj, self.v_proj)
        queries, keys, values = (self._split(projection(hidden)) for projection in projections)
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
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)  # -inf gives NaN in padding rows
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        mixed = weights @ values.repeat_interleave(group, dim=1)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (keys, values)

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the scores before the mask: (B, heads, T, D) and (B, heads, S, D) to (B, heads, T, S)."""
        return queries @ keys.transpose(-1, -2) * self.scale

    def _split(self, x: Tensor) -> Tensor:
        """Split the heads: (B, T, heads · D) to (B, heads, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class SoftCapAttention(GroupedQueryAttention):
    """Gemma 2's attention, with its own head size and query scale, soft-capped scores and a window.

    The state dict is that of transformers' `Gemma2Attention`.

    Args:
        head_dim: D, independent of hidden_size / num_heads (Gemma 2 2B: 256, not 2304 / 8 = 288).
        query_pre_attn_scalar: scores are multiplied by its inverse square root.
        cap: scores stay within ±cap.
        sliding_window: number of keys that a token sees, itself included; None for a global layer.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int,
                 query_pre_attn_scalar: float, cap: float = 50.0, sliding_window: int | None = None,
                 rope_theta: float = 10_000.0) -> None:
        super().__init__(hidden_size, num_heads, num_kv_heads, head_dim, rope_theta)
        if not (cap > 0 and query_pre_attn_scalar > 0):
            raise ValueError(f"cap is {cap} and query_pre_attn_scalar is {query_pre_attn_scalar}; both must "
                             "be above 0")
        self.scale = query_pre_attn_scalar**-0.5
        self.window = sliding_window
        self.cap = cap

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        # before the mask: after it, a masked key would have the score -cap, and so a small weight
        return soft_cap(super()._scores(queries, keys), self.cap)


def mha_to_gqa(module: nn.Module, num_kv_heads: int) -> nn.Module:
    """Merge the key/value heads in every attention layer of `module`, in place, and return it.

    Each new head is the mean of neighbouring heads (arXiv 2305.13245, section 2.1). `module` is an attention
    layer or a whole model with Llama's names (k_proj, v_proj); a model's config is updated, so that it can be
    saved and loaded. The merged model is worse until it is trained (in the paper for 5 % of the pretraining).

    Raises:
        ValueError: no layer with k_proj and v_proj, or num_kv_heads does not divide the present number.
    """
    layers = [layer for layer in module.modules() if hasattr(layer, "k_proj") and hasattr(layer, "v_proj")]
    if not layers:
        raise ValueError(f"module is a {type(module).__name__} without k_proj and v_proj; it must be or hold "
                         "attention layers with Llama's names (Phi-3 fuses q, k and v into one)")
    present = {layer.k_proj.out_features // layer.head_dim for layer in layers}
    if num_kv_heads < 1 or any(heads % num_kv_heads for heads in present):
        counts = ", ".join(map(str, sorted(present)))
        raise ValueError(f"num_kv_heads is {num_kv_heads}; it must divide the present {counts}")
    for layer in layers:
        for projection in (layer.k_proj, layer.v_proj):
            for name, value in list(projection.named_parameters()):
                groups = value.detach().unflatten(0, (num_kv_heads, -1, layer.head_dim))
                merged = groups.mean(1).flatten(0, 1)  # over the old heads of each group
                setattr(projection, name, nn.Parameter(merged, requires_grad=value.requires_grad))
            projection.out_features = num_kv_heads * layer.head_dim
        if isinstance(layer, GroupedQueryAttention):
            layer.num_kv_heads = num_kv_heads
        else:
            layer.num_key_value_groups = layer.q_proj.out_features // layer.head_dim // num_kv_heads
    if hasattr(module, "config") and module not in layers:  # a layer shares its config with its model
        module.config.num_key_value_heads = num_kv_heads
    return module


class FeedForward(nn.Module):
    """The SwiGLU block down(silu(gate(x)) * up(x)), with the state dict of `LlamaMLP`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, H) to (…, H)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseMoE(nn.Module):
    """A feed-forward block of E experts, in which a router chooses top_k experts for each token.

    y = Σ_i G(x)_i E_i(x), where G is the softmax over all router logits, cut to its top_k largest entries and
    divided by their sum (Mixtral, section 2.1). All experts stay in memory; a token uses top_k of them.

    Raises:
        ValueError: top_k is not between 1 and num_experts.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int = 2) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k is {top_k}; it must be between 1 and num_experts, {num_experts}")
        self.top_k = top_k
        self.router_logits: Tensor | None = None  # of the last call, (tokens, E), for load_balancing_loss
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(hidden_size, intermediate_size) for _ in range(num_experts))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, H) to (…, H)."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        self.router_logits = self.router(tokens)
        gates, chosen = self.router_logits.softmax(-1, dtype=torch.float32).topk(self.top_k)
        gates = (gates / gates.sum(-1, keepdim=True)).to(hidden.dtype)
        output = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == index)  # an expert computes only the tokens that chose it
            output.index_add_(0, token, gates[token, rank, None] * expert(tokens[token]))
        return output.view_as(hidden)


def load_balancing_loss(router_logits: Tensor, top_k: int) -> Tensor:
    """Return E · Σ_i f_i P_i in fp32, which is small when the experts get equal shares of the tokens.

    f_i is the share of tokens with expert i among their top_k (the f sum to top_k), P_i the mean of its
    softmax probability over router_logits (tokens, E); only P has a gradient. An even router gives top_k, a
    router that is certain of the same experts for every token gives E. Source: Switch Transformer, equations
    4 to 6. transformers' Mixtral has one loss for all layers: join their logits to match it.
    """
    probabilities = router_logits.softmax(-1, dtype=torch.float32)
    chosen = probabilities.topk(top_k).indices
    share = F.one_hot(chosen, router_logits.shape[-1]).sum(1).float().mean(0)
    return router_logits.shape[-1] * (share * probabilities.mean(0)).sum()


def upcycle_to_moe(model: PreTrainedModel, num_experts: int, top_k: int = 2,
                   layers: Iterable[int] | None = None) -> PreTrainedModel:
    """Replace feed-forward blocks by a `SparseMoE` of identical copies, in place, and return the model.

    Despite the new, random router, the output stays the same up to rounding: the gates sum to 1 and the
    experts start equal. Training then makes them differ. `from_pretrained` cannot load a saved result,
    because transformers has no class for it. Source: arXiv 2212.05055, section 3.

    Args:
        model: has decoder layers in `model.model.layers`, each with a feed-forward block `mlp`, like Llama.
        layers: indices of the layers to convert, from 0; all by default.

    Raises:
        ValueError: a layer does not exist or already has experts, or top_k is impossible.
    """
    decoder = model.model.layers
    chosen = sorted(set(range(len(decoder)) if layers is None else layers))
    for number in chosen:
        if not 0 <= number < len(decoder):
            raise ValueError(f"layers holds {number}; the model has layers 0 to {len(decoder) - 1}")
        if not hasattr(decoder[number].mlp, "down_proj"):
            kind = type(decoder[number].mlp).__name__
            raise ValueError(f"layers holds {number}, whose block is a {kind}; only a dense one is copied")
    for number in chosen:
        block = decoder[number].mlp
        down = block.down_proj.weight  # (H, I)
        with torch.device("meta"):  # no random weights: the experts become copies of the block
            mixture = SparseMoE(*down.shape, num_experts, top_k)
        mixture.router = nn.Linear(len(down), num_experts, bias=False, device=down.device, dtype=down.dtype)
        mixture.experts = nn.ModuleList(copy.deepcopy(block) for _ in range(num_experts))
        decoder[number].mlp = mixture.train(block.training)
    return model


def active_parameters(model: nn.Module) -> int:
    """Count the parameters that one token uses: all but those of the experts that are not chosen."""
    idle = 0
    for module in model.modules():
        if isinstance(module, SparseMoE):
            expert = sum(weight.numel() for weight in module.experts[0].parameters())
            idle += (len(module.experts) - module.top_k) * expert
    return sum(weight.numel() for weight in model.parameters()) - idle
