"""A small GPT over bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 256
HEAD_DIM = 32


class Block(nn.Module):
    """Causal attention, then a multilayer perceptron, each added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.attention_norm = nn.RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.RMSNorm(dim)
        self.mlp_in = nn.Linear(dim, 4 * dim, bias=False)
        self.mlp_out = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, dim) to the same."""
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return x + mixed


class GPT(nn.Module):
    """Predicts each next byte; 30,816 parameters at dim 32, 1 layer, context 64."""

    def __init__(self, dim: int, layers: int, context: int, seed: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, dim)
        self.position = nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(layers))
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, VOCABULARY, bias=False)
        self._initialize(seed)

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        # A generator of its own: the weights then depend on the seed alone.
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue  # the norms start at one
            std = 0.02
            if name.endswith("_out.weight"):  # added to the residual stream 2 * layers times
                std /= (2 * len(self.blocks)) ** 0.5
            parameter.normal_(std=std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, context) of bytes to (batch, context, 256) of logits."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def mean_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats per byte of a GPT, or of what is wrapped around one."""
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
