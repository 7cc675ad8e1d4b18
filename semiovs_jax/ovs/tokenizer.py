"""Tokenizers of CLIP text towers: from texts to padded rows of token ids.

A row holds the start id, the text, the end id, and zeros. Texts that are too long are truncated before the end id. The
end id is the largest id, so that a text tower finds it by argmax.
"""

import abc
import functools
import html
from collections.abc import Callable, Sequence

import ftfy
import numpy as np

from data_pipelines.errors import InputError


class Tokenizer(abc.ABC):
    """Encodes texts as rows of token ids: start, text, end, zeros.

    Attributes:
      vocab_size: number of ids, including 0.
      start_id: the first id of every row.
      end_id: the id after the text.
      context_length: length of every row. Longer texts are truncated.
    """

    vocab_size: int
    start_id: int
    end_id: int

    def __init__(self, context_length: int):
        self.context_length = context_length

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of `texts`, int32 [len(texts), context_length]."""
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *self._pieces(text)[: self.context_length - 2], self.end_id]
            row[: len(ids)] = ids
        return rows

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of ids of each text without truncation, including start and end."""
        return [len(self._pieces(text)) + 2 for text in texts]

    @abc.abstractmethod
    def _pieces(self, text: str) -> list[int]:
        """Ids of a text without start, end and truncation."""


def clean(text: str) -> str:
    """Fixes mojibake, resolves HTML entities (twice, as open_clip), collapses whitespace, converts to lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class ClipBpe(Tokenizer):
    """CLIP's byte pair encoding. The ids equal those of open_clip and of OpenAI's release."""

    vocab_size = 49408
    start_id = 49406
    end_id = 49407

    def _pieces(self, text: str) -> list[int]:
        return _bpe().encode(clean(text))


@functools.cache
def _bpe():  # type: ignore[no-untyped-def]  # the wheel has no type stubs and is absent on Python 3.13
    try:
        import instant_clip_tokenizer
    except ImportError as error:
        raise InputError(
            "tokenizer clip_bpe needs the package instant-clip-tokenizer (wheels for Python 3.11 and 3.12): "
            "install it, or use one of those Python versions"
        ) from error
    return instant_clip_tokenizer.Tokenizer()


class Bytes(Tokenizer):
    """One id per UTF-8 byte, for towers that are too small for an embedding of 49,408 rows.

    Ids: 0 is padding, 1 + b is the byte b, 257 is the start, 258 is the end. A text of n ASCII characters has n + 2
    ids, so only short prompts fit a short context.
    """

    vocab_size = 259
    start_id = 257
    end_id = 258

    def _pieces(self, text: str) -> list[int]:
        return [1 + byte for byte in clean(text).encode()]


_TOKENIZERS: dict[str, Callable[[int], Tokenizer]] = {"clip_bpe": ClipBpe, "bytes": Bytes}


def make_tokenizer(name: str, context_length: int) -> Tokenizer:
    """Returns the tokenizer `name` ("clip_bpe" or "bytes") with rows of `context_length` ids.

    Raises:
      InputError: an unknown name, or a context length below 3.
    """
    if name not in _TOKENIZERS:
        raise InputError(f'tokenizer "{name}" is unknown; use one of: {", ".join(sorted(_TOKENIZERS))}')
    if context_length < 3:
        raise InputError(f"context_length {context_length} leaves no room between start and end; set it to 3 or more")
    return _TOKENIZERS[name](context_length)
