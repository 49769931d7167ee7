"""The command `hapo-lab`, or `python -m hapo_lab`."""

import sys


def main() -> None:
    """`doctor` must also run where a package is missing that the other commands import."""
    if sys.argv[1:] == ["doctor"]:
        from hapo_lab.commands.doctor import main as command
    else:
        from hapo_lab.commands.cli import main as command
    command()


if __name__ == "__main__":
    main()
