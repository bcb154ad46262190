"""`python -m fairlead` is the same command line as `fairlead`."""

from fairlead.command_line import main

if __name__ == "__main__":
    main()
