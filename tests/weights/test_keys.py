import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from semiovs_jax.weights.keys import (
    Rule,
    WeightMismatchError,
    below,
    convert,
    fill,
    find_rule,
    flatten,
    match_exactly,
    prefixes,
    published_names,
    strip_prefix,
    target_shapes,
    unflatten,
)

RULES = (
    Rule(r"block\.(\d+)\.conv\.weight", r"block/\1/conv/kernel", "conv"),
    Rule(r"up\.weight", "up/kernel", "conv_transpose"),
    Rule(r"head\.weight", "head/kernel", "linear"),
    Rule(r"head\.bias", "head/bias"),
    Rule(r".*\.num_batches_tracked", None),
)


def source() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "block.0.conv.weight": rng.normal(size=(4, 3, 2, 1)).astype(np.float32),
        "up.weight": rng.normal(size=(3, 4, 2, 1)).astype(np.float32),
        "head.weight": rng.normal(size=(5, 4)).astype(np.float16),
        "head.bias": rng.normal(size=5),
        "bn.num_batches_tracked": np.zeros((), np.int64),
    }


TARGET = {
    "block/0/conv/kernel": (2, 1, 3, 4),
    "up/kernel": np.zeros((2, 1, 3, 4)),
    "head/kernel": (4, 5),
    "head/bias": (5,),
}


def test_layouts_types_and_dropped_names():
    given_ = source()
    values, dropped = (done := convert(given_, RULES, TARGET)).values, done.dropped
    assert dropped == ("bn.num_batches_tracked",)
    assert values["block/0/conv/kernel"][1, 0, 2, 3] == given_["block.0.conv.weight"][3, 2, 1, 0]
    assert values["up/kernel"][1, 0, 2, 3] == given_["up.weight"][2, 3, 1, 0]
    np.testing.assert_array_equal(values["head/kernel"], given_["head.weight"].T.astype(np.float32))
    assert values["head/kernel"].dtype == np.float32
    assert values["head/bias"].dtype == np.float64


def test_bfloat16_widens_and_integers_do_not():
    rules = (Rule("a", "a"), Rule("b", "b"))
    given_ = {"a": np.ones(2, ml_dtypes.bfloat16), "b": np.ones(2, np.int16)}
    values = convert(given_, rules, {"a": (2,), "b": (2,)}).values
    assert values["a"].dtype == np.float32
    assert values["b"].dtype == np.int16


def test_every_fault_in_one_message():
    rules = (
        *RULES,
        Rule("twin", "head/bias"),
        Rule("far", "nowhere/kernel"),
        Rule("flat", "flat/kernel", "conv"),
    )
    given_ = source() | {
        "stray.weight": np.zeros((1, 2)),
        "twin": np.zeros(5),
        "far": np.zeros(1),
        "flat": np.zeros((3, 2)),
        "head.weight": np.zeros((6, 4), np.float32),
    }
    target = {**TARGET, "lonely/scale": (7,), "flat/kernel": (1, 1, 2, 3)}
    with pytest.raises(WeightMismatchError) as caught:
        convert(given_, rules, target, name="resnet50.pth")
    message = str(caught.value)
    assert isinstance(caught.value, InputError)
    for part in (
        "resnet50.pth",
        "stray.weight (1, 2)",
        "far -> nowhere/kernel",
        "head/bias <- head.bias, twin",
        "flat has shape (3, 2)",
        "head.weight -> head/kernel has shape (4, 6), expected (4, 5)",
        "1 targets without a source:\n    lonely/scale",
    ):
        assert part in message


def test_pattern_must_match_the_whole_name():
    with pytest.raises(WeightMismatchError, match=r"head\.bias2"):
        convert(source() | {"head.bias2": np.zeros(5)}, RULES, TARGET)


def test_first_rule_decides():
    done = convert({"a.b": np.zeros(1)}, (Rule(r"a\..*", None), Rule(r"a\.b", "a/b")), {})
    assert done.values == {}
    assert done.dropped == ("a.b",)


def dicts(values: st.SearchStrategy) -> st.SearchStrategy:
    """Integers or names as keys, never both: JAX takes no dict with both as a pytree."""
    names = (st.integers(0, 12), st.sampled_from(["kernel", "layer1", "bn_0", "x"]))
    return st.one_of(*(st.dictionaries(keys, values, min_size=1, max_size=3) for keys in names))


trees = dicts(st.recursive(st.integers(), dicts))


@given(trees)
def test_unflatten_inverts_flatten(tree):
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert flatten(unflatten(flat)) == flat


def test_shapes_of_what_the_rules_name_and_can_lay_out():
    source = {"conv.weight": np.zeros((5, 2, 3, 4)), "conv.bias": np.zeros(5), "fc.weight": np.zeros(3)}
    source["other"] = np.zeros(1)
    rules = [
        Rule(r"(\w+)\.bias", r"\1/bias"),
        Rule(r"conv\.weight", "conv/kernel", "conv"),
        Rule(r"fc\.weight", "fc/kernel", "linear"),
    ]
    assert target_shapes(source, rules) == {"conv/kernel": (3, 4, 2, 5), "conv/bias": (5,)}


def test_rules_below_a_prefix():
    rules = below([Rule(r"a|b", "x"), Rule(r"c", None)], "net.", "part")
    assert find_rule("net.b", rules) == (rules[0], "part/x")
    assert find_rule("net.c", rules) == (rules[1], None)
    assert find_rule("b", rules) is find_rule("netxb", rules) is None


def test_prefixes_end_at_a_dot():
    source = dict.fromkeys(("conv.weight", "a.b.conv.weight", "deconv.weight", "conv.weight.ema", "x.convaweight"))
    assert prefixes(source, r"conv\.weight") == ["", "a.b."]
    assert strip_prefix({"a.b": 1, "a.c.d": 2, "ab": 3}, "a.") == {"b": 1, "c.d": 2}


def test_a_tree_is_filled_in_its_own_types():
    tree = {"a": [np.zeros(2, np.float32)], "b": np.zeros(1, np.int32)}
    filled = fill({"a": {0: tree["a"][0]}, "b": tree["b"]}, {"a/0": np.ones(2), "b": np.ones(1), "c": np.ones(3)})
    assert filled["a"][0].tolist() == [1, 1]
    assert (filled["a"][0].dtype, filled["b"].dtype) == (np.float32, np.int32)


def test_exact_values_are_widened_and_others_refused():
    values = match_exactly({"a": np.ones(2, np.float16)}, {"a": (2,)}, name="w")
    assert values["a"].dtype == np.float32
    with pytest.raises(WeightMismatchError, match=r"w: (.|\n)*not in the model:\n    b"):
        match_exactly({"a": np.ones(2), "b": np.ones(1)}, {"a": (2,)}, name="w")


def test_a_table_works_in_both_directions():
    given_ = {name: value.astype(np.float32) for name, value in source().items() if not name.startswith("bn")}
    back = published_names(convert(given_, RULES, TARGET).values, RULES)
    assert back.keys() == given_.keys()
    for name, value in given_.items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize(
    ("values", "rules", "message"),
    [
        ({"head/scale": np.zeros(1)}, RULES, "no rule has the target head/scale"),
        ({"a": np.zeros(1)}, [Rule(r"(?:a|b)", "a")], "has no inverse"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, [Rule("x", "a"), Rule("x", "b")], "two tensors are named x"),
    ],
)
def test_what_has_no_published_name_is_an_error(values, rules, message):
    with pytest.raises(ValueError, match=message):
        published_names(values, rules)
