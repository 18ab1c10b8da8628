"""Which label file belongs to which image.

Strategy: an image and its label have the same path below their folders, apart from what the layout says
their stems end in. Pairing is strict both ways, because a score over part of a set would look like a score
over all of it; only layouts whose copies are usually partial leave files out, and say how many.
"""

import warnings
from pathlib import Path

from PIL import Image

from corte_student.data.folder import find_images
from corte_student.data.layouts.layout import Layout, Place
from corte_student.data.layouts.presets import find_layout
from corte_student.errors import DataError

Pairs = list[tuple[Path, Path]]


def find_pairs(root: Path, layout: str, split: str) -> Pairs:
    """The pairs of one split of a data set that was unpacked at `root`. Raises DataError."""
    rules = find_layout(layout)
    tried = []
    for place in rules.places:
        if split not in place.splits:
            continue
        folders = [_filled(root, place, split, part) for part in rules.parts]
        if any(images.is_dir() for images, _ in folders):
            pairs = [found for images, labels in folders for found in pair(images, labels, layout)]
            return _listed(pairs, root / place.listed, split) if place.listed else pairs
        tried += [images for images, _ in folders]
    if not rules.places:
        raise DataError(f"layout {layout} fixes no folders: name them with --images and --labels")
    if not tried:
        known = dict.fromkeys(name for place in rules.places for name in place.splits)
        raise DataError(f"layout {layout} has no labelled split {split!r}: choose {', '.join(known)}")
    raise DataError(
        f"{root} does not hold split {split} of layout {layout}: unpack it so that there is "
        + " or ".join(str(folder) for folder in tried)
    )


def pair(images: Path, labels: Path, layout: str) -> Pairs:
    """Each image with its label file, in the images' order. Raises DataError; see the module.

    For layouts with partial copies, pairs of two sizes and files without a partner are left out, with a
    UserWarning each kind that holds the count and an example.
    """
    rules = find_layout(layout)
    _check_folders(images, labels)
    if rules.codes and (labels.parent / "codes.txt").is_file():
        _check_codes(labels.parent / "codes.txt", rules)
    inside = labels.resolve()
    # labels are images too: those in a folder below --images are not to be scored
    pictures: dict[Path, list[Path]] = {}
    for path in find_images(images):
        if inside not in path.resolve().parents:
            key = path.relative_to(images).with_suffix("")
            pictures.setdefault(key.with_name(key.name.removesuffix(rules.image_suffix)), []).append(path)
    truths = {
        path.relative_to(labels).with_suffix(""): path
        for path in sorted(labels.rglob("*"))
        if path.suffix.lower() == ".png"
    }
    pairs = [
        (picture, truth)
        for key, found in pictures.items()
        if (truth := _label_of(key, truths, rules)) is not None
        for picture in found
    ]
    _tell_bare(pictures, truths, (images, labels), rules)
    _tell_lost(pictures, truths, rules)
    if rules.partial:
        pairs = _of_one_size(pairs)
    if not pairs:
        raise DataError(
            f"no label in {labels} belongs to an image in {images}: check --layout and both folders"
        )
    return pairs


def _filled(root: Path, place: Place, split: str, part: str) -> tuple[Path, Path]:
    images, labels = (text.format(split=split, part=part) for text in (place.images, place.labels))
    return root / images, root / labels


def _listed(pairs: Pairs, names: Path, split: str) -> Pairs:
    """The pairs of `val`, whose images the file names, or of `train`, all others."""
    try:
        chosen = {
            Path(line.strip()).name for line in names.read_text(errors="replace").splitlines() if line.strip()
        }
    except OSError as exc:
        raise DataError(f"{names} lists the images of val and cannot be read: {exc.strerror}") from exc
    found = [(image, label) for image, label in pairs if (image.name in chosen) is (split == "val")]
    if not found:
        raise DataError(f"{names} leaves no image for {split}: replace it with the data set's own")
    return found


def _check_folders(images: Path, labels: Path) -> None:
    for folder, flag in ((images, "--images"), (labels, "--labels")):
        if not folder.is_dir():
            raise DataError(f"{flag} {folder} is not a folder")
    if images.resolve() == labels.resolve():
        raise DataError(
            f"--images and --labels are the same folder, {images}: keep labels in one of their own"
        )


def _check_codes(path: Path, rules: Layout) -> None:
    names = tuple(line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip())
    if names != rules.codes:
        raise DataError(
            f"{path} lists other classes than the {len(rules.codes)} that this layout merges "
            f"({rules.codes[0]}, {rules.codes[1]}, ...): its numbers mean something else, so use layout plain"
        )


def _label_of(key: Path, truths: dict[Path, Path], rules: Layout) -> Path | None:
    names = (key.with_name(key.name + suffix) for suffix in rules.suffixes)
    return next((truths[name] for name in names if name in truths), None)


def _tell_bare(
    pictures: dict[Path, list[Path]],
    truths: dict[Path, Path],
    folders: tuple[Path, Path],
    rules: Layout,
) -> None:
    """An error, or a warning, for images without a label."""
    bare = [p for key, found in pictures.items() if _label_of(key, truths, rules) is None for p in found]
    if not bare:
        return
    total = sum(len(found) for found in pictures.values())
    if rules.partial:
        _warn(f"{len(bare)} of {total} images have no label and are left out, the first is {bare[0]}")
        return
    images, labels = folders
    relative = bare[0].relative_to(images).with_suffix("")
    stem = relative.name.removesuffix(rules.image_suffix)
    wanted = relative.with_name(f"{stem}{rules.suffixes[0]}.png")
    hint = "" if rules.suffixes == ("",) else f"; {rules.remedy}"
    raise DataError(f"{len(bare)} of {total} images have no label: {bare[0]} needs {labels / wanted}{hint}")


def _tell_lost(pictures: dict[Path, list[Path]], truths: dict[Path, Path], rules: Layout) -> None:
    """An error, or a warning, for labels without an image."""
    lost = [path for name, path in truths.items() if not _belongs(name, pictures, rules)]
    if not lost:
        return
    if rules.partial:
        _warn(f"{len(lost)} of {len(truths)} labels have no image and are left out, the first is {lost[0]}")
        return
    raise DataError(
        f"{len(lost)} of {len(truths)} labels have no image, the first is {lost[0]}: "
        "point --labels at a folder with just the labels of --images"
    )


def _belongs(name: Path, pictures: dict[Path, list[Path]], rules: Layout) -> bool:
    """Whether a PNG below --labels is of a known image: its label, or where labels have suffixes a sibling
    (colours, instances), whose stem begins with the image's."""
    if rules.suffixes == ("",):
        return name in pictures
    parts = name.name.split("_")
    return any(name.with_name("_".join(parts[:n])) in pictures for n in range(1, len(parts) + 1))


def _of_one_size(pairs: Pairs) -> Pairs:
    """The pairs whose two files have one size, by their headers; the others are left out with a warning."""
    wrong = {label for image, label in pairs if _size(image) != _size(label)}
    if wrong:
        first = next(image for image, label in pairs if label in wrong)
        _warn(
            f"{len(wrong)} of {len(pairs)} images differ in size from their label and are left out, "
            f"the first is {first}"
        )
    return [(image, label) for image, label in pairs if label not in wrong]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path} cannot be read ({exc}): replace or remove it") from exc


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)
