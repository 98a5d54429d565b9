#!/usr/bin/env python3
"""Export a Mamba model and prove the result: `mamba-export export --verify`, under the name that users know.

    python tools/export_engine.py models/kjv-bytes -o out/kjv
    python tools/export_engine.py state-spaces/mamba-130m-hf -o out/130m --dtype fp16 --engine

Exit code 0: exported and verified; 1: exported, and a check failed; 2: bad input, nothing written (where the
engine is refused after the export, that stays).
"""

import sys

from mamba_export.cli import main

if __name__ == "__main__":
    main(["export", "--verify", *sys.argv[1:]])
