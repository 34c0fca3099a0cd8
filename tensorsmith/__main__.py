"""The command line: ``tensorsmith`` and ``python -m tensorsmith``."""

from compiler.cli.main import main

if __name__ == "__main__":
    main()
