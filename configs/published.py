"""The published experiments, by dataset, method and labeled split; each has a file of its own beside this one.

Each takes `--config.method.ood=none` for the method without OOD images, and `=unlabeled` for OOD images as ordinary
unlabeled ones. Values are those of the reference's `semiovs/configs/{pascal,pc60}.yaml` and
`semiovs_semivl/configs/generated/exp-40/` unless said otherwise.
"""

from ml_collections import ConfigDict

from configs import common


def voc(method: str, split: str) -> ConfigDict:
    """Pascal VOC 2012 with the labels of `split` ("92" to "1464"), locked."""
    config = common.semiovs_unimatch()
    config.data.labeled_split = f"splits/{split}/labeled.txt"
    config.data.unlabeled_split = f"splits/{split}/unlabeled.txt"
    return _with_method(config, method)


def context(method: str, split: str) -> ConfigDict:
    """Pascal Context's 60 classes with the labels of `split` ("1_32" to "1_2"), locked."""
    config = common.semiovs_unimatch()
    config.data.dataset = "context60"
    config.data.root = "data/pascal_context"
    config.data.labeled_split = f"splits/{split}/labeled.txt"
    config.data.unlabeled_split = f"splits/{split}/unlabeled.txt"
    config.ovs.vocabulary = "context60"
    config.ovs.labels_dir = "data/coco/ovs_context60"
    return _with_method(config, method)


def _with_method(config: ConfigDict, method: str) -> ConfigDict:
    config.method.name = method
    if method == "supervised":
        _supervised(config)
    if method == "semivl":
        _semivl(config)
    return config.lock()


def _supervised(config: ConfigDict) -> None:
    """The labeled images alone, in batches twice as large (UniMatch's README); an epoch is a pass over them."""
    config.method.ood = "none"
    config.batch_size = 16


def _semivl(config: ConfigDict) -> None:
    config.batch_size = 4  # 2 on each of 2 GPUs
    config.data.crop_size = 512
    config.data.scale_short_side = 512
    config.model.backbone = "clip_vit_b16"
    config.model.weights = "weights/clip_vit_b16.safetensors"
    config.method.ood_weight = 0.5
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-4
    config.optim.backbone_multiplier = 0.01  # of attention and positions; the rest of the backbone is frozen
    config.optim.weight_decay = 0.01
    config.eval.batch_size = 2
    config.eval.short_side = 512
    config.eval.window = 512
    config.eval.stride = 426
