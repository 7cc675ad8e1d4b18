"""Reads goldens: outputs of the official PyTorch code, on weights that are made by a formula.

The formula and the tolerances are those that the goldens were published with. `python -m tests.replay` writes what this
project computes from the same inputs.
"""

import functools
import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

_HERE = Path(__file__).parent / "golden"
_SHARED = Path(__file__).parents[2] / "shared" / "goldens"

# Inputs and accidental values of the reference, by family: never compared.
_INPUTS = {
    "imagenet": r"^x$",
    "deeplab": r"^(x|even/x|fp/keep_)",
    "losses_unimatch": r"^(cwl/(loss|conf|ignore|thresholds)$|cutmix/(img|img_mix|box|mask|mask_mix|conf|conf_mix)$"
    r"|ce/(logits|target|target_no_ignore)$|ohem/.*/(logits|target)$|iou(/\d+|_label_K)/(pred|mask)$)",
    "transforms": r"^(img_|mask_)",
    "semiovs_unimatch_step": r"^(in/|probe$)",
    "semiovs_prevmatch_step": r"^(in/|probe$)",
    "semiovs_semivl_step": r"^(it\d+_in_|text_(decode|mcc)$)",
    "clip_text": r"^$",
    "clip_convnext": r"^image$",
    "sed_decoder": r"^in_",
    "sed_fast": r"^in_",
    "sed_full": r"^image$",
    "maskclip_vit": r"^input_",
    "maskclip_labels": r"^(input$|text_)",
    "vlg_head": r"^(feat\d|emb|text)$",
    "zegclip_sliding_window": r"(_img|resize_in|resize_mask_in)$",
}
# Intermediate values of the reference: compared if the replay has them, optional otherwise.
_OPTIONAL = {
    "imagenet": r"^$",
    "deeplab": r"(feature_stats|buffer_norms|_stats|/c\d_s|/aspp_s|/classifier|/b4)$",
    "losses_unimatch": r"^(iou_label_K|color_map|ohem/(min_kept_|weighted)|cwl/value_(all_)?ignored|ce/mean_all_)",
    "transforms": r"^(hsv|item/|gray_L)",
    "semiovs_unimatch_step": r"^(init/|lr0\.001|.*/margin$|.*head8$|(?!.*/f64/).*/(delta_norm|momentum_norm)$)",
    "semiovs_prevmatch_step": r"^(init/|lr0\.001|.*/margin$|.*head8$|(?!.*/f64/).*/(delta_norm|momentum_norm)$)",
    "semiovs_semivl_step": r"_stats$|mixed|^(param|delta|grad)_first|^it[12]_(mask|mclip|pred|conf)"
    r"|^it0_(mask|ignore|mclip)",
    "clip_text": r"^block_",
    "clip_convnext": r"^stem$",
    "sed_decoder": r"^(corr|corr_embed|block_)|_aux\d$",
    "sed_fast": r"^prune_full",
    "sed_full": r"^(res\d|clip_input|image_resized|label_margin|agg)$",
    "maskclip_vit": r"(_probe|_stats|_global)$",
    "maskclip_labels": r"^(cityscapes|voc_renorm|voc_single)|probe",
    "vlg_head": r"(_probe|_stats|^sim|text_proj)$",
    "zegclip_sliding_window": r"padded|center_crop|_stats$|_merged|resize",
}


# Goldens with published text embeddings, which the repository must not contain.
_NOT_SHIPPED = {"maskclip_labels", "vlg_head", "semiovs_semivl_step"}


def golden_path(name: str) -> Path:
    """The path of the golden `name`; skips the calling test if it is missing and must not be shipped.

    Raises:
      FileNotFoundError: another golden is missing.
    """
    for folder in (_HERE, _SHARED):
        if (path := folder / f"{name}.npz").exists():
            return path
    if name not in _NOT_SHIPPED:
        raise FileNotFoundError(f"golden {_HERE / name}.npz is missing; restore it from the repository")
    pytest.skip(f"golden {name}.npz contains published text embeddings and is not shipped with the repository")


def formula_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The value of the state-dict entry `name`, float32 or, for step counters, int64; a function of the arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.split(".")[-1]
    match leaf:
        case "num_batches_tracked":
            return np.zeros(shape, np.int64)
        case "logit_scale":
            return np.full(shape, math.log(1 / 0.07), np.float32)
        case "running_var":
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf in ("bias", "running_mean") or leaf.endswith("_bias"):
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) <= 1:
        return (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = math.prod(shape[1:])
    return (rng.standard_normal(shape) * math.sqrt(2.0 / fan_in)).astype(np.float32)


class Golden:
    """One golden file: `meta` (what was run), `shapes` (of the state dict's tensors), and arrays by key."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._arrays = np.load(self.path)
        self.meta: dict[str, Any] = json.loads(str(self._arrays["meta"]))
        self.keys = [key for key in self._arrays.files if key not in ("meta", "shapes")]

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The state dict's tensor shapes, by published name (empty for goldens without a model)."""
        if "shapes" not in self._arrays.files:
            return {}
        return {name: tuple(shape) for name, shape in json.loads(str(self._arrays["shapes"])).items()}

    def state_dict(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """Formula-made weights by published name, with the scales of `meta`; by default with the file's own seed."""
        seed = self.meta["fill_seed"] if seed is None else seed
        return {name: self._tensor(name, shape, seed) for name, shape in self.shapes.items()}

    def stored(self, key: str, value: np.ndarray) -> np.ndarray:
        """The part of `value` that the file contains under `key`: the rows and columns that `meta` gives."""
        text = self.meta.get("arrays", {}).get(key, {}).get("slice", "")
        bounds = (part.split(":") for part in text.strip("[]").split(",") if part.strip())
        return value[tuple(slice(*(int(n) if n.strip() else None for n in part)) for part in bounds)]

    def _tensor(self, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
        value = formula_tensor(name, shape, seed)
        factor = self.meta.get("scale", {}).get(name, 1.0)
        for pattern, by in self.meta.get("output_scale", []):
            if re.search(pattern, name):
                factor *= by
        return value if factor == 1.0 else (value * np.float32(factor)).astype(value.dtype)


def family(path: str | Path, families: Mapping[str, Any]) -> str:
    """The longest family name that the file's name starts with."""
    stem = Path(path).stem
    fitting = [name for name in families if stem.startswith(name)]
    if not fitting:
        raise ValueError(f"{path}: no replay for this golden; known families: {', '.join(sorted(families))}")
    return max(fitting, key=len)


def _reference_noise(meta: dict[str, Any]) -> dict[str, float]:
    noise: dict[str, float] = {}
    for table in ("f32_vs_f64_max_abs", "fp32_vs_fp64_maxabs"):
        noise |= {k: v for k, v in meta.get(table, {}).items() if isinstance(v, int | float)}
    arrays = meta.get("arrays", {})
    for key, facts in arrays.items() if isinstance(arrays, dict) else ():
        if (value := facts.get("max_abs_diff_float32_vs_float64_reference_run")) is not None:
            noise[key] = value
    return noise


def _image_limits(key: str) -> tuple[float, float]:
    """Mean and max allowed difference of a transforms key, in 8-bit levels (units of 1 for `normalize`)."""
    if key == "normalize":
        return 2e-6, 1e-5
    if re.match(r"crop|hflip", key) or re.search(r"mask|box|ignore", key):
        return 0.0, 0.0
    if re.match(r"brightness|contrast|saturation|grayscale", key):
        return 0.6, 2.0
    if key.startswith("jitter"):
        return 3.0, 24.0
    if re.match(r"hue|blur", key):
        return 1.5, 24.0
    return 0.75, 8.0


def _is_double(key: str) -> bool:
    return "/f64/" in key or key.endswith("_f64")


class Difference(NamedTuple):
    """How far an array of a replay is from the golden's.

    Attributes:
      key: of the golden.
      amount: the difference, in words, with what is allowed.
      share: the difference over what is allowed; more than 1 where it is too large, infinite where there is no number.
    """

    key: str
    amount: str
    share: float

    @property
    def held(self) -> bool:
        """Whether it is within the published tolerance."""
        return self.share <= 1

    def __str__(self) -> str:
        return f"{self.key}: {self.amount}"


def _share(error: float, limit: float) -> float:
    if limit:
        return float(error / limit)
    return 0.0 if error == 0 else math.inf


def _difference(name: str, key: str, want: np.ndarray, got: np.ndarray, noise: float) -> Difference:
    if want.shape != got.shape:
        return Difference(key, f"shape {got.shape}, not {want.shape}", math.inf)
    double = _is_double(key)
    if name == "transforms":
        error = np.abs(want.astype(np.float64) - got)
        mean, worst = _image_limits(key)
        amount = f"mean {error.mean():.3g} (<= {mean}), max {error.max():.3g} (<= {worst})"
        return Difference(key, amount, max(_share(error.mean(), mean), _share(error.max(), worst)))
    if want.dtype.kind in "iub":
        if "count/" in key:
            worst = np.abs(want - got).max()
            limit = 8 if double else max(8, 0.002 * want.max())
            return Difference(key, f"{worst} pixels (<= {limit})", _share(worst, limit))
        share = float(np.mean(want != got))
        limit = 0.0 if key.startswith("token_ids") or double or name == "losses_unimatch" else 1e-3
        return Difference(key, f"{share:.3%} differ (<= {limit:.1%})", _share(share, limit))
    want, got = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return Difference(key, "finite in one, not in the other", math.inf)
    scale = np.abs(want[finite]).max(initial=0.0)
    error = np.abs(want[finite] - got[finite]).max(initial=0.0)
    if double:
        limit = 1e-6 * max(scale, 1e-6)
    else:
        limit = max(min(20 * noise, 0.02 * scale), 3e-5 * scale)
        if name.startswith("semiovs_") and re.search(r"(^|/)(total|loss\w*|mask_ratio\w*)$", key):
            limit = max(limit, 1e-3 * scale)
    return Difference(key, f"max error {error:.3g} (<= {limit:.3g})", _share(error, limit))


def _comes_later(key: str, iterations: int) -> bool:
    """Whether a key of SemiVL's golden belongs to a later iteration, or to the state after all iterations."""
    number = re.search(r"it(\d+)", key)
    return int(number[1]) >= iterations if number else key.startswith(("param_", "delta_", "probe_"))


def differences(
    golden: Golden, outputs: Mapping[str, np.ndarray], double: bool = False, *, iterations: int = 0
) -> list[Difference]:
    """The difference of every compared key of `golden`.

    Args:
      golden: the expected values.
      outputs: the results of a replay.
      double: whether they were computed in float64.
      iterations: how many iterations were replayed, 0 for all. Keys of later iterations are not compared, and arrays
        with one row per iteration are shorter.
    """
    name = family(golden.path, _INPUTS)
    inputs, optional = re.compile(_INPUTS[name]), re.compile(_OPTIONAL[name])
    noise = _reference_noise(golden.meta)
    found = []
    for key in golden.keys:
        if inputs.search(key) or _is_double(key) != double or (key not in outputs and optional.search(key)):
            continue
        if iterations and _comes_later(key, iterations):
            continue
        if key not in outputs:
            found.append(Difference(key, "missing", math.inf))
            continue
        got = np.asarray(outputs[key])
        want = golden[key][:iterations] if iterations and not re.search(r"it\d", key) else golden[key]
        found.append(_difference(name, key, want, got, noise.get(key, 0.0)))
    return found


def assert_matches(
    golden: Golden, outputs: Mapping[str, np.ndarray], double: bool = False, *, iterations: int = 0
) -> None:
    """Asserts that every compared key of `golden` is in `outputs`, within the published tolerance.

    For the arguments see `differences`.
    """
    found = differences(golden, outputs, double, iterations=iterations)
    faults = [difference for difference in found if not difference.held]
    assert found, f"{golden.path}: nothing to compare"
    lines = "\n".join(map(str, faults))
    assert not faults, f"{golden.path.name}: {len(faults)} of {len(found)} fall short:\n{lines}"
