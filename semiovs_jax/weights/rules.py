"""Rules for layers that several models share. Source and target are patterns of the layer's name and its path."""

from semiovs_jax.weights.keys import Rule


def norm(source: str, target: str) -> list[Rule]:
    """Layer normalization."""
    return [Rule(rf"{source}\.weight", f"{target}/scale"), Rule(rf"{source}\.bias", f"{target}/bias")]


def linear(source: str, target: str) -> list[Rule]:
    """Dense layer with bias."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", "linear"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def conv(source: str, target: str) -> list[Rule]:
    """Convolution with bias."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", "conv"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def conv_transpose(source: str, target: str) -> list[Rule]:
    """Transposed convolution with bias."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", "conv_transpose"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def convnext_block(source: str, target: str) -> list[Rule]:
    """ConvNeXt block, with the names of its authors or of timm."""
    return [
        *conv(rf"{source}\.(?:conv_dw|dwconv)", f"{target}/depthwise"),
        *norm(rf"{source}\.norm", f"{target}/norm"),
        *linear(rf"{source}\.(?:mlp\.fc1|pwconv1)", f"{target}/expand"),
        *linear(rf"{source}\.(?:mlp\.fc2|pwconv2)", f"{target}/contract"),
        Rule(rf"{source}\.gamma", f"{target}/gamma"),
    ]


def attention(source: str) -> list[Rule]:
    r"""Attention of layer `\1`, with separate query, key and value: `clip.vit_params.unpacked` splits packed ones."""
    return [
        rule
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
        for rule in linear(rf"{source}\.{theirs}", rf"layers/\1/attention/{ours}")
    ]
