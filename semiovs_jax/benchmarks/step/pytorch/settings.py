"""What a step in PyTorch is: method, model, sizes, precision; and the published constants of its method."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """One measured step.

    Attributes:
      method: "supervised", "unimatch", "prevmatch" or "semivl".
      ood: whether OOD images with OVS labels are learned, too.
      backbone: "resnet50" or "resnet101", and "vit_b16" for "semivl".
      num_classes: channels of the logits.
      batch_size: images of each stream.
      crop_size: side of the images, in pixels.
      device: "cpu" or "cuda".
      precision: "float32", "tf32" or "amp" (autocast to bfloat16).
      channels_last: memory layout of images and convolutions.
      compiled: whether torch.compile compiles the networks and the losses.
    """

    method: str
    ood: bool
    backbone: str
    num_classes: int
    batch_size: int
    crop_size: int
    device: str
    precision: str
    channels_last: bool = True
    compiled: bool = False


@dataclasses.dataclass(frozen=True)
class Constants:
    """Constants of the reference's trainers; the defaults are those of `semiovs/` on Pascal VOC, 92 labels.

    Attributes:
      threshold: least confidence of the student's and the OVS's labels.
      ood_weight: lambda.
      snapshots: PrevMatch's snapshots that are held.
      snapshot_threshold: least confidence of their labels.
      maskclip_weight: of MaskCLIP's labels at the first update; it falls to 0 at the last.
      maskclip_threshold: least confidence of MaskCLIP's labels.
      adamw: the optimizer, else SGD.
      learning_rate: at the first update.
      backbone_multiplier: the backbone's rate over the learning rate.
      head_multiplier: the rest's.
      momentum: of SGD.
      weight_decay: of every trained parameter.
      power: of the learning rate's polynomial decay.
      steps_per_epoch: updates in an epoch.
      total_steps: length of the run, in updates.
      first_step: updates done before the first one that is measured.
    """

    threshold: float = 0.95
    ood_weight: float = 1.0
    snapshots: int = 8
    snapshot_threshold: float = 0.9
    maskclip_weight: float = 0.1
    maskclip_threshold: float = 0.9
    adamw: bool = False
    learning_rate: float = 1e-3
    backbone_multiplier: float = 1.0
    head_multiplier: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    steps_per_epoch: int = 1311
    total_steps: int = 80 * 1311
    first_step: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Of an update; the reference sets it after each update, from that update's index."""
        return self.learning_rate * (1 - max(step - 1, 0) / self.total_steps) ** self.power

    def snapshot_weight_at(self, step: int) -> float:
        """PrevMatch's mu: from 0 in the first epoch to 1 in the middle one and back to 0."""
        epoch, total = step // self.steps_per_epoch, -(-self.total_steps // self.steps_per_epoch)
        peak = total // 2
        return epoch / max(peak, 1) if epoch < peak else (total - epoch) / max(total - peak, 1)

    def maskclip_weight_at(self, step: int) -> float:
        """SemiVL's nu."""
        return self.maskclip_weight * (1 - step / self.total_steps)


_SEMIVL = Constants(ood_weight=0.5, adamw=True, learning_rate=1e-4, backbone_multiplier=0.01, weight_decay=0.01)


def published_constants(method: str) -> Constants:
    """The constants of a method's reference trainer."""
    return _SEMIVL if method == "semivl" else Constants()
