"""SED-B on COCO-Stuff's 171 classes, the base vocabulary of the published SEDs.

    python -m semiovs_jax.convert open_clip_pytorch_model.bin weights/clip_convnext_b.safetensors --kind=clip
    python -m semiovs_jax.ovs.train --config=configs/ovs_coco_stuff.py --workdir=runs/ovs_coco_stuff

Needs: laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K, converted as above, and COCO 2017 with COCO-Stuff's
label planes (0..170, 255 is ignored; CAT-Seg's `datasets/prepare_coco_stuff.py` makes them) below data/coco, listed
in splits of `IMAGE LABEL` lines. For another base vocabulary, write a dataset JSON and a vocabulary JSON with the
same classes, and name them in `data.dataset` and `vocabulary`.

Values are those of xb534/SED at 250b495f (`configs/convnextB_768.yaml`, `configs/config.yaml`, `train_net.py`)
unless said otherwise. The reference resizes the short side to 768 and jitters colors; here the long side is drawn
around that size. It decays biases and layer scales, too.

Hardware: the reference's 4 GPUs, or any number of devices that divides 4. Time, mIoU: not measured yet.
"""

import ml_collections
from ml_collections import ConfigDict


def get_config() -> ml_collections.ConfigDict:
    """The experiment's locked config."""
    config = ConfigDict()
    config.kind = "sed"
    config.seed = 0
    config.vocabulary = "coco_stuff171"
    config.templates = "imagenet80"
    config.init = "weights/clip_convnext_b.safetensors"  # of kind "clip" or "sed"
    config.file = "sed_b_coco_stuff.safetensors"  # written to the workdir
    config.precision = "float32"  # of the file

    config.data = ConfigDict()
    config.data.source = "files"
    config.data.dataset = "coco_stuff171"  # data_pipelines/datasets/<name>.json, or a path
    config.data.root = "data/coco"
    config.data.labeled_split = "splits/stuff_train2017.txt"  # relative to root
    config.data.val_split = "splits/stuff_val2017.txt"
    config.data.held_out = 500  # first images of val_split, which measure the labels; 0: none
    config.data.crop_size = 768
    config.data.scale_range = (1.2, 2.0)  # of the long side; 1.6 takes 640 x 480 to a short side of 768
    config.data.scale_short_side = 0  # scale_range is that of the long side
    config.data.max_bad_records = 0
    config.data.num_workers = 0
    config.data.num_threads = 8
    config.data.prefetch = 8
    config.data.stall_seconds = 600.0

    config.model = ConfigDict()
    config.model.image_size = 768
    config.model.short_side = 640
    config.model.dtype = "float32"  # "bfloat16" on TPU
    config.model.matmul_precision = "highest"  # of float32 products: exact; "high", "default": faster on TPU and GPU
    config.model.aggregator = ConfigDict(
        {
            "width": 128,
            "decoder_widths": (64, 32, 16),
            "guidance_widths": (32, 16, 8),
            "num_heads": 4,
            "kernel_sizes": (9, 9, 9),
        }
    )

    config.optim = ConfigDict()
    config.optim.learning_rate = 2e-4  # of the aggregator
    config.optim.visual_multiplier = 0.01
    config.optim.text_multiplier = 0.0  # frozen
    config.optim.warmup_steps = 0
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 0.01

    config.train = ConfigDict()
    config.train.batch_size = 4
    config.train.aggregator_stride = 1  # all images pass the aggregator
    config.train.steps = 80_000
    config.train.pooling = 2  # side of the pooling before the class attention; 1 in inference
    config.train.detach_guides = True  # no gradient through the image tower's levels that guide the aggregator
    config.train.ignore_as_negative = False  # True: as the reference
    config.train.contrastive_weight = 0.0  # for towers that start from random weights
    config.train.log_every_steps = 50
    config.train.checkpoint_every_steps = 2000
    return config.lock()
