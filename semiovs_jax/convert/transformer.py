"""Rules for the parts that both CLIP towers have, under any of the published prefixes."""

from semiovs_jax.convert.keys import Rule


def norm(source: str, target: str) -> list[Rule]:
    """Layer normalization."""
    return [Rule(rf"{source}\.weight", f"{target}/scale"), Rule(rf"{source}\.bias", f"{target}/bias")]


def linear(source: str, target: str) -> list[Rule]:
    """Dense layer with bias."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", "linear"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def attention(source: str) -> list[Rule]:
    r"""Attention of layer `\1`, query, key and value apart: see `clip.unpacked` for sources that pack them."""
    return [
        rule
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
        for rule in linear(rf"{source}\.{theirs}", rf"layers/\1/attention/{ours}")
    ]
