"""What makes a rename or a write survive a power cut."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk (fsync(2))."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, text: str) -> None:
    """Put `text` in the place of a small file: at any kill or power cut it is the old one or the new."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    sync(fresh)
    fresh.replace(path)
    sync(path.parent)
