"""``python -m mamba_export``: the command ``mamba-export``."""

from mamba_export.cli import main

if __name__ == "__main__":
    main()
