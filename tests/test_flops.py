"""The FLOPs of the published train step are those of its architecture: nothing is computed twice or in vain."""

import math
from collections.abc import Iterator

import jax
import pytest

from configs import voc92
from semiovs_jax.experiment import abstract_inputs
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.student import STUDENTS
from semiovs_jax.runtime.flops import count_flops
from semiovs_jax.runtime.sharding import make_mesh
from semiovs_jax.train_step import make_train_step

CLASSES = 21


def convolution(side: int, size: int, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> int:
    """FLOPs of a padded convolution of one square image; products with padding do not count."""
    offsets = [dilation * (tap - size // 2) for tap in range(size)]
    reads = sum(0 <= position + offset < side for position in range(0, side, stride) for offset in offsets)
    return 2 * reads**2 * inputs * outputs


def interpolation(side: int, target: int, channels: int) -> int:
    """FLOPs of bilinear interpolation as two matrix products."""
    return 2 * target * side * side * channels + 2 * target * target * side * channels


def backbone(model: Architecture, side: int) -> Iterator[tuple[int, int]]:
    """(FLOPs, side of the result) of each convolution of the ResNet, for one image."""
    inputs = 3
    for index, width in enumerate(model.stem_widths):
        stride = 2 if index == 0 else 1
        yield convolution(side, 3, inputs, width, stride), math.ceil(side / stride)
        side, inputs = math.ceil(side / stride), width
    side, dilation = math.ceil(side / 2), 1
    for stage, (blocks, width) in enumerate(zip(model.stage_sizes, model.widths, strict=True)):
        is_dilated = stage > 0 and model.dilate[stage - 1]
        before, dilation = dilation, dilation * (2 if is_dilated else 1)
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 and not is_dilated else 1
            after, outputs = math.ceil(side / stride), width * model.expansion
            total = convolution(side, 1, inputs, width)
            total += convolution(side, 3, width, width, stride, before if block == 0 else dilation)
            total += convolution(after, 1, width, outputs)
            if block == 0:
                total += convolution(side, 1, inputs, outputs, stride)
            yield total, after
            side, inputs = after, outputs


def decoder(model: Architecture, low: int, high: int, side: int) -> int:
    """FLOPs of ASPP, decoder, classifier and interpolation of the logits, for one image."""
    features, channels = model.widths[-1] * model.expansion, model.channels
    total = convolution(high, 1, features, channels)
    total += sum(convolution(high, 3, features, channels, dilation=rate) for rate in model.rates)
    total += 2 * features * channels  # of the pooled features
    total += convolution(high, 1, (len(model.rates) + 2) * channels, channels)
    total += interpolation(high, low, channels)
    total += convolution(low, 1, model.widths[0] * model.expansion, model.low_level_channels)
    total += convolution(low, 3, channels + model.low_level_channels, channels) + convolution(
        low, 3, channels, channels
    )
    return total + convolution(low, 1, channels, CLASSES) + interpolation(low, side, CLASSES)


@pytest.mark.slow
def test_the_published_step_has_the_flops_of_its_architecture():
    config = voc92.get_config().unlock()
    config.model.random_init = True
    side, batch = config.data.crop_size, config.batch_size
    model = STUDENTS[config.model.backbone]
    layers = list(backbone(model, side))
    sides = [after for _, after in layers]
    low, high = sides[len(model.stem_widths) + model.stage_sizes[0] - 1], sides[-1]
    once = sum(flops for flops, _ in layers)
    decoded = decoder(model, low, high, side)
    # Labeled and unlabeled images, decoded with and without dropped features; two strong views of unlabeled and OOD
    # images; the OOD images' weak view with dropped features. The backward pass takes twice the FLOPs, but for the
    # gradient of the images.
    spec, arguments = abstract_inputs(config, make_mesh(jax.devices()[:1]))
    joint = batch * (1 + len(spec.method.weak_streams))
    strong = 2 * batch * len(spec.method.predicted_streams)
    frozen = batch * len([name for name in spec.method.labeled_by["student"] if name not in spec.method.weak_streams])
    trained = (joint + strong) * once + (2 * joint + strong) * decoded
    expected = 3 * trained - (joint + strong) * layers[0][0] + frozen * (once + decoded)

    step = make_train_step(spec, make_mesh(jax.devices()[:1]))
    assert count_flops(step, *arguments) == pytest.approx(expected, rel=0.005)
    for platform in ("tpu", "cpu"):  # XLA's count has what is no product, too
        found = step.trace(*arguments).lower(lowering_platforms=(platform,)).cost_analysis()["flops"]
        assert found == pytest.approx(expected, rel=0.05), platform
