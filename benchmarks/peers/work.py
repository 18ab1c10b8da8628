"""The work that all servers do, as files: one graph, some pictures, and the label maps that are right."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEIGHT: Final = 256
WIDTH: Final = 512
GRAPH_FILE: Final = "graph.onnx"
GRAPH: Final = "CORTE_PEERS_GRAPH"
"""The environment variable that tells a peer where it is."""
MARK: Final = b"\xff\xfe\x00\x0a"
"""A JPEG comment of eight bytes, the client's to fill, so that no two requests are the same bytes."""
MARK_AT: Final = 2 + len(MARK)
"""Where in a picture those eight bytes begin."""


@dataclass(frozen=True, slots=True)
class Work:
    """JPEGs (each begins with FFD8 and `MARK`) and their label maps, H x W bytes."""

    pictures: tuple[bytes, ...]
    truth: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.truth) or not self.pictures:
            raise ValueError("as many pictures as label maps, and at least one")
        if any(picture[2:MARK_AT] != MARK for picture in self.pictures):
            raise ValueError("every picture begins with FFD8 and the mark")


def read_work(folder: Path) -> Work:
    """What `making.make_work` wrote."""
    names = sorted(folder.glob("*.jpg"))
    return Work(
        tuple(name.read_bytes() for name in names),
        tuple(name.with_suffix(".labels").read_bytes() for name in names),
    )
