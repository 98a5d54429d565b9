"""The one writer: folders and files that appear whole or not at all, and replace nothing that is the user's."""

from mamba_export.files.outputs import new_file, new_files, new_folder
from mamba_export.files.partial import begun, end_left
from mamba_export.files.writing import check_inside, copy_file, opened, write_bytes, write_text

__all__ = [
    "begun",
    "check_inside",
    "copy_file",
    "end_left",
    "new_file",
    "new_files",
    "new_folder",
    "opened",
    "write_bytes",
    "write_text",
]
