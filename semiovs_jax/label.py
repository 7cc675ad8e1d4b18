"""Labels images by the names of classes: python -m semiovs_jax.label --config=configs/voc92.py.

With --config, they are its out-of-distribution (OOD) images, once; training labels missing ones, too. If the command is
killed, start it again: it labels the images that have no label yet, and the result has the same bytes as that of one
run. To share the work among machines without JAX's distributed runtime, start the command on each machine with
--process_index and --process_count.

Without a config and without training: --source=photos --classes="sky,plant=tree|bush,person" --out=labels. The words
after "=" are looked for in place of the name. --classes may be a vocabulary file, too. --import=FOLDER --out=labels,
with --config or --classes, checks labels of another tool and takes them over.
"""

import sys
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags as absl_flags

from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import set_up_process
from semiovs_jax.runtime.config_files import has_flag, load_config

if TYPE_CHECKING:
    from semiovs_jax.ovs.labeling.images import LabelReport


def main(flags: Any) -> None:
    """Labels the OOD images of `flags.config`; for the other flags see `label_request`."""
    from semiovs_jax.label_request import label_as_requested

    label_as_requested(flags)


def label(config: ml_collections.ConfigDict | str) -> "LabelReport":
    """Labels the OOD images of a config on this machine, as the command does.

    Args:
      config: an experiment, or as --config names it: "configs/voc92.py".

    Raises:
      InputError: something a person has to fix.
    """
    set_up_process()
    from semiovs_jax.ood_labels import label_ood_images
    from semiovs_jax.runtime.sharding import make_mesh

    return label_ood_images(load_config(config) if isinstance(config, str) else config, make_mesh())


make_callable(__name__, label)

if __name__ == "__main__":
    from semiovs_jax.runtime.command import run_command

    absl_flags.DEFINE_string("source", "", "Folder of the images, in place of config.data.ood_root.")
    absl_flags.DEFINE_string("out", "", "Folder of the labels, in place of config.ovs.labels_dir.")
    absl_flags.DEFINE_string("classes", "", "Classes 'NAME,NAME=WORD|WORD', or a vocabulary file.")
    absl_flags.DEFINE_string("ovs_weights", "", "Weights of the model that labels, in place of config.ovs.weights.")
    absl_flags.DEFINE_string("import", "", "Folder of labels of another tool, which are checked and taken over.")
    default_config = "configs/custom.py" if has_flag("--classes", sys.argv) else ""
    kept = "the labels that are written are kept; the same command makes the others"
    run_command(
        main,
        needs_workdir=False,
        default_config=default_config,
        kept=kept,
        has_shares=True,
        config_help="An experiment, such as configs/demo.py; with --classes, it may be left out.",
    )
