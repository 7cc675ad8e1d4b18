"""Prints the script that completes `semiovs` command lines in a shell: python -m semiovs_jax.completion bash.

It completes commands, flags and their choices, config files and config keys. Put this line into ~/.bashrc:

    eval "$(semiovs completion bash)"

or this one into ~/.zshrc, after the line with compinit:

    eval "$(semiovs completion zsh)"
"""

from collections.abc import Sequence

from data_pipelines.command import command_end
from semiovs_jax.runtime.arguments import make_parser, parse_arguments
from semiovs_jax.runtime.program import SCRIPT


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("semiovs_jax.completion", __doc__)
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parse_arguments(parser, argv).shell
    import argcomplete

    print(argcomplete.shellcode([SCRIPT], shell=shell))


if __name__ == "__main__":
    with command_end():
        main()
