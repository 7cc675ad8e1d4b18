"""Replays sed_vocab: token ids of one prompt for every name, synonyms apart."""

import numpy as np

from semiovs_jax.ovs.tokenizer import make_tokenizer
from tests.golden import Golden


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    del double  # ids are integers
    tokenizer = make_tokenizer("clip_bpe", 77)
    texts = [f"a photo of a {name}." for name in golden.meta["parts"]]
    return {"token_ids": tokenizer.encode(texts)[:, : max(tokenizer.count(texts))]}
