"""plugins/kernels/mamba_kernels.h as the tests read it."""

from __future__ import annotations

import re
from pathlib import Path

HEADER = Path(__file__).parents[1] / "plugins/kernels/mamba_kernels.h"


def c_structs() -> dict[str, list[tuple[str, str]]]:
    """Fields (name, C type) of each struct of the header, in order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    structs = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL):
        fields = []
        for declaration in filter(None, map(str.strip, body.split(";"))):
            kind, names = re.fullmatch(r"([\w ]*\w[ *]+)((?:\w+,\s*)*\w+)", declaration).groups()
            fields += [
                (field.strip(), "pointer" if "*" in kind else kind.strip())
                for field in names.split(",")
            ]
        structs[name] = fields
    return structs
