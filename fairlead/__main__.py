"""`python -m fairlead` is the same command line as `fairlead`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is loaded ends it without a trace, as later on."""
    try:
        from fairlead.command_line import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
