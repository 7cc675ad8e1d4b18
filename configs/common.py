"""What every experiment shares: the SemiOVS trainer's settings on Pascal VOC.

Values are those of the reference's `semiovs/configs/pascal.yaml` unless said otherwise. Every size is global: it does
not change with the number of devices. Experiments change what differs and lock the result. The ranges of numbers are in
`semiovs_jax/config_ranges.py`.
"""

from collections.abc import Sequence

import ml_collections
from ml_collections import ConfigDict

from data_pipelines.errors import InputError


def semiovs_unimatch() -> ml_collections.ConfigDict:
    """SemiOVS on UniMatch, unlocked: ResNet-101 DeepLabV3+, COCO as OOD images."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 8  # images per stream and step

    config.data = ConfigDict()
    config.data.dataset = "voc21"  # class names, palette: data_pipelines/datasets/<name>.json, or a path
    config.data.root = "data/pascal"  # below it JPEGImages/, SegmentationClass/
    config.data.labeled_split = "splits/92/labeled.txt"  # relative to root
    config.data.unlabeled_split = "splits/92/unlabeled.txt"
    config.data.val_split = "splits/val.txt"
    config.data.ood_root = "data/coco/train2017"  # or a json file of several sources: data_pipelines/sources/mixture.py
    config.data.ood_split = ""  # "": every image below ood_root
    config.data.ood_min_foreground = 0.0  # share of an OOD image that its cached OVS label must call no background
    config.data.ood_repeat_threshold = 0.0  # classes that a smaller share of the OOD images shows are drawn more often
    config.data.make = ""  # "shapes": write the embedded benchmark to root if nothing is there
    config.data.crop_size = 321
    config.data.scale_range = (0.5, 2.0)  # of the long side, before the crop
    config.data.scale_short_side = 0  # > 0: scale_range times this side, as SemiVL scales
    config.data.scaled_decode = False  # True: decode JPEGs smaller where the drawn size is at most half; other pixels
    config.data.max_bad_records = 0  # unreadable images that are skipped before a run gives up
    config.data.num_workers = 0  # processes that build batches; 0: the one that trains
    config.data.num_threads = 8  # of each process that builds batches
    config.data.prefetch = 8  # batches built ahead
    config.data.stall_seconds = 600.0  # a batch that takes longer ends the run and names what was read; 0: never

    config.model = ConfigDict()
    config.model.backbone = "resnet101"
    config.model.weights = "weights/resnet101.safetensors"  # of semiovs_jax.convert; or a run: fine-tune
    config.model.random_init = False  # True: train the backbone from scratch
    config.model.dtype = "float32"  # of convolutions; "bfloat16" on TPU
    config.model.matmul_precision = "highest"  # of float32 products: exact; "high", "default": faster on TPU and GPU
    config.model.remat = "none"  # "blocks", "full": compute activations again in the backward pass: less memory

    config.method = ConfigDict()
    config.method.name = "unimatch"  # "supervised", "unimatch", "prevmatch", "semivl"
    config.method.ood = "ovs"  # "none", "unlabeled" (OOD images join the unlabeled stream), "ovs"
    config.method.ood_weight = 1.0  # lambda
    config.method.confidence_threshold = 0.95
    config.method.ovs_threshold = 0.0  # OOD pixels that the OVS labels with less confidence cause no loss
    config.method.snapshots = ConfigDict()  # PrevMatch's snapshots of the student
    config.method.snapshots.capacity = 8
    config.method.snapshots.draws = 3  # snapshots that label a batch together at most
    config.method.snapshots.confidence_threshold = 0.9
    config.method.snapshots.gate = "pixelwise"  # "pixelavg": weigh images by their mean confidence (Cityscapes)
    config.method.maskclip = ConfigDict()  # SemiVL's labels of a frozen CLIP
    config.method.maskclip.weight = 0.1  # at the start; falls to 0 at the end
    config.method.maskclip.confidence_threshold = 0.9

    config.ovs = ConfigDict()
    config.ovs.name = "sed"  # or "maskclip", which is light: a module of semiovs_jax/ovs
    config.ovs.weights = "weights/sed_large.safetensors"  # python -m semiovs_jax.convert sed_model_large.pth ...
    config.ovs.vocabulary = "voc21"  # semiovs_jax/ovs/vocabularies/<name>.json, or a path
    config.ovs.templates = "imagenet80"  # semiovs_jax/ovs/templates/<name>.json, or a path; "": the vocabulary's own
    config.ovs.image_size = 768
    config.ovs.normalization = ""  # "": the weights' own; "imagenet", "clip"
    config.ovs.class_chunk = 19  # concepts that SED computes at a time; 0: all, faster where memory allows
    config.ovs.top_k = 0  # > 0: SED's fast path, which keeps the concepts that are among the best k of some pixel
    config.ovs.dtype = "float32"  # or "bfloat16"
    config.ovs.matmul_precision = "highest"  # as model.matmul_precision
    config.ovs.labels = "cached"  # "online": inside the train step; "external": files of another tool in labels_dir
    config.ovs.labels_dir = "data/coco/ovs_voc21"
    config.ovs.batch_size = 8

    config.clip = ConfigDict()  # SemiVL's frozen CLIP: labels crops, and embeds the names of the student's classes
    config.clip.weights = "weights/clip_vit_b16.safetensors"  # python -m semiovs_jax.convert model.safetensors ...
    config.clip.vocabulary = "voc21_semivl"  # words of the labels, as ovs.vocabulary
    config.clip.class_prompt = "a photo of a {}"  # for the dataset's class names
    config.clip.normalization = "imagenet"  # of the crops that it labels, as ovs.normalization
    config.clip.layers = "maskclip"  # exact GELU, epsilon 1e-6; "": as CLIP was trained
    config.clip.dtype = "float32"
    config.clip.matmul_precision = "highest"  # as model.matmul_precision

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # or "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.backbone_multiplier = 1.0  # the backbone's rate over the learning rate
    config.optim.head_multiplier = 10.0  # the rest's
    config.optim.momentum = 0.9  # of sgd
    config.optim.weight_decay = 1e-4
    config.optim.power = 0.9  # of the polynomial decay

    config.train = ConfigDict()
    config.train.epochs = 80  # over the unlabeled stream
    config.train.steps = 0  # > 0: this many steps instead
    config.train.log_every_steps = 50
    config.train.eval_every_steps = 0  # 0: every epoch
    config.train.checkpoint_every_steps = 0  # 0: every epoch
    config.train.max_bad_steps = 0  # steps whose loss or gradient is not finite that are skipped before a run gives up
    config.train.fsdp = 1  # devices that share one copy of the state, each holding a part; 1: every device has its own
    config.train.panel_images = 4  # images in a panel, written at each evaluation; 0: no pictures of images
    config.train.writers = "tensorboard"  # or "tensorboard,wandb,mlflow", "": modules of semiovs_jax/writers
    config.train.profile_steps = (0, 0)  # first and last step of a start, from 1, to trace for XProf; (0, 0): none

    config.eval = ConfigDict()
    config.eval.batch_size = 8
    config.eval.max_shapes = 4  # padded shapes that evaluation compiles
    config.eval.short_side = 0  # of the images that the student sees; 0: images keep their size
    config.eval.window = 0  # side of sliding windows whose logits are averaged; 0: whole images
    config.eval.stride = 426  # distance of windows
    config.eval.scales = (1.0,)  # factors of the images' size; the probabilities of several are averaged
    config.eval.flip = False  # True: averages those of mirrored images, too
    return config


def parse_row(argument: str, file: str, splits: Sequence[str], methods: Sequence[str]) -> tuple[str, str]:
    """Split and method of a published row, from "SPLIT" (the first method) or "SPLIT,METHOD".

    Args:
      argument: what follows the colon in `--config=FILE:SPLIT,METHOD`.
      file: the config file, for the message.
      splits: the splits that the file has.
      methods: the methods that it has.

    Raises:
      InputError: there is no such row; the message lists those that there are.
    """
    split, _, method = argument.partition(",")
    method = method or methods[0]
    if split not in splits or method not in methods:
        raise InputError(
            f"--config={file}:{argument}: no such experiment; write --config={file}:SPLIT or {file}:SPLIT,METHOD with "
            f"a SPLIT of {', '.join(splits)} and a METHOD of {', '.join(methods)} (without one: {methods[0]})"
        )
    return split, method


def with_method(config: ConfigDict, method: str) -> ConfigDict:
    """Sets the method and what its reference changes with it, in place.

    Values are those of the references: UniMatch's README for "supervised" (an epoch is a pass over the labeled images),
    `semiovs_semivl/configs/generated/exp-40/` for "semivl".
    """
    config.method.name = method
    if method == "supervised":
        config.method.ood = "none"
        config.batch_size = 16
    if method == "semivl":
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
    return config
