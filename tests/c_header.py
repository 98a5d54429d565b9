"""The kernels' C headers as the tests read them."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "plugins/kernels"


def header_text() -> str:
    """The kernels' interface: the generated structs, then the rest."""
    return "".join((FOLDER / name).read_text() for name in ("mamba_params.h", "mamba_kernels.h"))


def c_structs() -> dict[str, list[tuple[str, str]]]:
    """Fields (name, C type) of each struct of the headers, in order."""
    text = re.sub(r"/\*.*?\*/", "", header_text(), flags=re.DOTALL)
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


_TYPES = {
    "int64_t": ctypes.c_int64,
    "int": ctypes.c_int,
    "mamba_dtype": ctypes.c_int,
    "float": ctypes.c_float,
    "pointer": ctypes.c_void_p,
}


@functools.cache  # ctypes takes a struct of one class alone
def mirror(name: str) -> type[ctypes.Structure]:
    """A ctypes structure with the fields of a struct of the headers."""
    structs = c_structs()
    fields = [
        (field, mirror(kind) if kind in structs else _TYPES[kind]) for field, kind in structs[name]
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Sequence = mirror("mamba_sequence")
