"""Texts: from words to tokens, and from tokens to vectors."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from ._core.checks import check_number
from ._core.optional import import_optional


class TextTower(nn.Module):
    """Transformer with causal attention; the output is the feature of the last token.

    Parameters
    ----------
    vocabulary_size : int
        Number of different tokens, including 0, which follows the end.
    context_length : int
        Maximum number of tokens L of a text.
    width : int
        Length of the features.
    n_layers : int
    n_heads : int
        Attention heads; a divisor of ``width``.
    out_features : int
        Length D of the result.

    Notes
    -----
    ``forward`` maps tokens ``(B, L)``, integers that are 0 after the end of a text, to
    ``(B, D)``. The number of zeros after the end does not matter.

    References
    ----------
    .. [1] A. Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021; section 2.4.

    Examples
    --------
    >>> from sklabel.text import TextTower, tokenizer
    >>> tower = TextTower(259, 20, width=16, n_layers=1, n_heads=2, out_features=8)
    >>> tower(tokenizer("bytes", 20)(["a cat", "two dogs"])).shape
    torch.Size([2, 8])
    """

    def __init__(
        self, vocabulary_size, context_length, width, n_layers, n_heads, out_features
    ):
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, width)
        self.places = nn.Parameter(torch.randn(context_length, width) * 0.01)
        self.blocks = nn.Sequential(
            *(_TextBlock(width, n_heads, n_layers) for _ in range(n_layers))
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_features, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.project.weight, std=width**-0.5)

    def forward(self, tokens):
        # tokens after the last one are 0, and none of those before has seen them
        last = tokens.shape[1] - 1 - (tokens != 0).flip(1).int().argmax(1)
        if tokens.device.type != "cpu":
            return self._encode(tokens, last)
        # short texts are not to wait for the longest one
        order = last.argsort()
        parts = [
            self._encode(tokens[rows, : int(last[rows[-1]]) + 1], last[rows])
            for rows in order.split(32)
        ]
        return torch.cat(parts)[order.argsort()]

    def _encode(self, tokens, last):
        h = self.embed(tokens) + self.places[: tokens.shape[1]]  # (B, L, width)
        h = self.blocks(h)[torch.arange(len(last), device=last.device), last]
        return self.project(self.norm(h))  # (B, D)


class _TextBlock(nn.Module):
    def __init__(self, width, n_heads, n_layers):
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        # as published: the sum over all layers starts with the variance of one
        std = width**-0.5
        last_std = std * (2 * n_layers) ** -0.5
        for layer, spread in (
            (self.qkv, std),
            (self.mix, last_std),
            (self.widen, (2 * width) ** -0.5),
            (self.narrow, last_std),
        ):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def forward(self, h):
        n_rows, n_places, width = h.shape
        qkv = self.qkv(self.norm1(h)).view(n_rows, n_places, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, width / heads) each
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.mix(a.transpose(1, 2).reshape(n_rows, n_places, width))
        return h + self.narrow(F.gelu(self.widen(self.norm2(h))))


class ByteTokenizer:
    """UTF-8 bytes of the lowercase text as tokens, without a vocabulary.

    Parameters
    ----------
    context_length : int
        Maximum number of tokens L of a text, including its start and end, >= 3; more
        are cut off.

    Attributes
    ----------
    vocab_size : int
        259: 0 after the end, 1 to 256 for bytes, 257 for the start, 258 for the end.

    Notes
    -----
    A call turns a list of n str into a Tensor of int of shape (n, L). Leading, trailing
    and repeated spaces are ignored.
    """

    vocab_size = 259

    def __init__(self, context_length):
        check_number(3, whole=True, context_length=context_length)
        self.context_length = context_length

    def __call__(self, texts):
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids = [b + 1 for b in " ".join(text.lower().split()).encode()]
            ids = [257, *ids[: self.context_length - 2], 258]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens


@functools.lru_cache(maxsize=4)
def tokenizer(name, context_length):
    """Return a tokenizer of texts.

    Parameters
    ----------
    name : {"bytes", "bpe"}
        "bytes": see :class:`ByteTokenizer`; "bpe": CLIP's vocabulary of 49,408 word
        pieces (extra ``clip``).
    context_length : int
        Maximum number of tokens L of a text, including its start and end; more are cut
        off.

    Returns
    -------
    tokenizer : callable
        Turns a list of n str into a Tensor of int of shape (n, L), 0 after the end;
        ``vocab_size`` is the number of different tokens.

    Raises
    ------
    ValueError
        For an unknown name.
    ImportError
        If "bpe" is asked for and open_clip not installed.

    Examples
    --------
    >>> from sklabel.text import tokenizer
    >>> tokenizer("bytes", 6)(["ab", ""])
    tensor([[257,  98,  99, 258,   0,   0],
            [257, 258,   0,   0,   0,   0]])
    """
    if name not in ("bytes", "bpe"):
        raise ValueError(f'The tokenizer name={name!r} is neither "bytes" nor "bpe".')
    check_number(3, whole=True, context_length=context_length)
    if name == "bytes":
        return ByteTokenizer(context_length)
    open_clip = import_optional("open_clip", extra="clip")
    return open_clip.SimpleTokenizer(context_length=context_length)
