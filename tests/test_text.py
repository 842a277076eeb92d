"""Text: bytes as tokens, the tower that reads them."""

import pytest
import torch

from sklabel.text import ByteTokenizer, TextTower, tokenizer


def test_bytes_as_tokens():
    tokens = ByteTokenizer(8)(["A  b", "é", "", "long enough"])
    assert tokens[0].tolist() == [257, 98, 33, 99, 258, 0, 0, 0]
    assert tokens[1].tolist()[:4] == [257, 0xC3 + 1, 0xA9 + 1, 258]
    assert tokens[2].tolist()[:3] == [257, 258, 0]
    assert tokens[3, -1] == 258  # the end is kept where a text is cut


def test_the_text_tower_reads_up_to_the_end_and_in_order():
    torch.manual_seed(0)
    tower = TextTower(259, 30, 16, 2, 2, 8).eval()
    tokens = ByteTokenizer(30)(["ab", "ba", *(f"text {i}" * 2 for i in range(70))])
    with torch.no_grad():
        h = tower(tokens)
        assert not torch.allclose(h[0], h[1], atol=1e-4)
        torch.testing.assert_close(tower(tokens[:1, :4]), h[:1])  # padding: no effect
        for row in (0, 40, 71):
            torch.testing.assert_close(tower(tokens[row : row + 1])[0], h[row])
        last = (tokens != 0).sum(1) - 1
        torch.testing.assert_close(tower._encode(tokens, last), h)


def test_named_tokenizers():
    tokens = tokenizer("bytes", 9)(["a"])
    assert torch.equal(tokens, ByteTokenizer(9)(["a"]))
    with pytest.raises(ValueError, match="'words' is neither"):
        tokenizer("words", 9)
