"""Images in a folder: found, decoded upright, sent without metadata."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from corte_protocol import Image
from corte_student.data.folder import find_images, read_picture, read_pixels
from corte_student.data.jpeg import stripped
from corte_student.errors import DataError

SECRET = b"GPS-OF-MY-HOUSE"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def jpeg(picture: Pillow.Image, **options: object) -> bytes:
    target = io.BytesIO()
    picture.save(target, "JPEG", **options)
    return target.getvalue()


def decoded(body: bytes) -> np.ndarray:
    with Pillow.open(io.BytesIO(body)) as picture:
        return np.asarray(picture.convert("RGB"))


def exif(orientation: int) -> Pillow.Exif:
    tags = Pillow.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = SECRET.decode()
    return tags


def saved(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["RGB", "L"]),
    st.booleans(),
    st.sampled_from([0, 2]),
    st.binary(max_size=40),
    st.binary(max_size=40),
)
def test_stripping_keeps_every_pixel_and_no_metadata(
    height: int, width: int, mode: str, progressive: bool, subsampling: int, comment: bytes, tail: bytes
) -> None:
    """A stripped JPEG decodes to the same pixels and holds no comment, EXIF, profile or trailing bytes."""
    picture = Pillow.fromarray(noise(height, width, height * 41 + width)).convert(mode)
    source = jpeg(
        picture,
        progressive=progressive,
        subsampling=subsampling,
        comment=SECRET + comment,
        exif=exif(1),
        icc_profile=SECRET * 9,
        restart_marker_blocks=2,
    )
    body = stripped(source + tail + SECRET)
    assert body is not None
    assert SECRET not in body
    assert body.endswith(b"\xff\xd9")
    assert np.array_equal(decoded(body), decoded(source))
    assert stripped(body) == body


def test_a_jpeg_thumbnail_does_not_leave() -> None:
    """The thumbnail inside a JFIF segment is metadata: it is cut off, the picture stays."""
    source = jpeg(Pillow.fromarray(noise(8, 8)))
    length = int.from_bytes(source[4:6], "big")
    thumb = SECRET[:12]
    head = (length + 12).to_bytes(2, "big") + source[6:18] + b"\x02\x02" + thumb
    fat = source[:4] + head + source[4 + length :]
    assert np.array_equal(decoded(fat), decoded(source))
    body = stripped(fat)
    assert body is not None and thumb not in body
    assert np.array_equal(decoded(body), decoded(source))


def test_adobe_rgb_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    """A JPEG that stores RGB directly, told by its Adobe segment, is sent and trained on alike."""
    source = jpeg(Pillow.fromarray(noise(16, 16)), keep_rgb=True)
    picture = read_picture(saved(tmp_path, "a.jpg", source))
    assert picture.media_type == "image/jpeg"
    assert np.array_equal(decoded(picture.body), decoded(source))


def test_of_a_phones_multi_picture_file_the_first_is_sent(tmp_path: Path) -> None:
    """An MPO file is its first picture; the others and its index stay here."""
    first, second = Pillow.fromarray(noise(24, 24, 1)), Pillow.fromarray(noise(24, 24, 2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.media_type == "image/jpeg"
    assert b"MPF" not in picture.body
    assert np.array_equal(read_pixels(tmp_path / "a.jpg"), picture.pixels)
    assert np.array_equal(decoded(picture.body), picture.pixels)


JPEGS = [
    jpeg(Pillow.fromarray(noise(24, 24)).convert(mode), progressive=progressive, restart_marker_blocks=blocks)
    for mode in ("RGB", "L")
    for progressive in (False, True)
    for blocks in (0, 2)
]


@settings(max_examples=250)
@given(
    source=st.sampled_from(JPEGS),
    where=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=6),
    insert=st.booleans(),
)
def test_a_damaged_jpeg_is_refused_or_read_alike(
    source: bytes, where: float, patch: bytes, insert: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are hit, the pixels trained on are those that are sent, or the file is an error."""
    at = int(where * len(source))
    path = tmp_path_factory.mktemp("damaged") / "a.jpg"
    path.write_bytes(source[:at] + patch + source[at if insert else at + len(patch) :])
    try:
        picture = read_picture(path)
    except DataError:
        return
    assert np.array_equal(decoded(picture.body), picture.pixels)
    assert np.array_equal(read_pixels(path), picture.pixels)


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_stripping_never_raises(data: bytes) -> None:
    """Any bytes give a result or None."""
    stripped(b"\xff\xd8" + data)


def test_a_plain_jpeg_is_sent_as_it_is_and_trained_on_as_sent(tmp_path: Path) -> None:
    """For 8-bit RGB or grey with orientation 1 the source's compressed data travels."""
    for mode in ("RGB", "L"):
        source = jpeg(Pillow.fromarray(noise(20, 30)).convert(mode), exif=exif(1), quality=80)
        path = saved(tmp_path, f"{mode}.jpg", source)
        picture = read_picture(path)
        assert picture.media_type == "image/jpeg"
        assert len(picture.body) < len(source) and SECRET not in picture.body
        assert np.array_equal(decoded(picture.body), picture.pixels)
        assert np.array_equal(read_pixels(path), picture.pixels)
        assert picture.pixel_digest == Image(picture.pixels).digest


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pixels_are_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """Every orientation of every format is undone, and the body shows the upright pixels without EXIF."""
    target = io.BytesIO()
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    Pillow.fromarray(noise(6, 10)).save(target, kind, exif=exif(orientation), **options)
    path = saved(tmp_path, f"a.{kind.lower()}", target.getvalue())
    with Pillow.open(path) as source:
        source.load()
        upright = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    picture = read_picture(path)
    assert picture.pixels.shape == ((6, 10, 3) if orientation < 5 else (10, 6, 3))
    assert np.array_equal(picture.pixels, upright)
    assert np.array_equal(decoded(picture.body), upright)
    assert np.array_equal(read_pixels(path), upright)
    assert SECRET not in picture.body
    assert picture.media_type == ("image/jpeg" if kind == "JPEG" and orientation == 1 else "image/png")


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("1", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "bmp")),
        *(("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif"), ("RGBA", "webp"), ("RGBA", "tif")),
    ],
)
def test_odd_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    """Palettes, alpha, bits and CMYK are read as 8-bit RGB and sent as PNG."""
    path = tmp_path / f"a.{suffix}"
    rgb = Pillow.fromarray(noise(9, 7))
    source = rgb.convert("L").convert("LA") if mode == "LA" else rgb.convert(mode)
    source.save(path)
    picture = read_picture(path)
    assert picture.media_type == "image/png"
    assert picture.pixels.shape == (9, 7, 3) and picture.pixels.dtype == np.uint8
    assert np.array_equal(decoded(picture.body), picture.pixels)
    assert np.array_equal(read_pixels(path), picture.pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    """A 16-bit grey picture keeps its upper byte."""
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + np.uint16(255)
    Pillow.fromarray(grey).save(tmp_path / f"a.{suffix}")
    pixels = read_pixels(tmp_path / f"a.{suffix}")
    assert np.array_equal(pixels[:, :, 1], np.arange(256).reshape(16, 16))


def test_transparent_palettes_give_no_warning(tmp_path: Path) -> None:
    """A palette with a transparent entry keeps that entry's own colour."""
    source = Pillow.fromarray(noise(8, 8)).quantize(4)
    colours = np.asarray(source.convert("RGB"))
    source.save(tmp_path / "a.png", transparency=bytes([0, 255, 255, 255]))
    assert np.array_equal(read_pixels(tmp_path / "a.png"), colours)


def test_floats_are_refused(tmp_path: Path) -> None:
    """Pixels without a known range are not guessed at."""
    Pillow.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="convert it"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_one_clear_line(tmp_path: Path, kind: str) -> None:
    """A file that ends too early is an error that names it, in both readers."""
    target = io.BytesIO()
    Pillow.fromarray(noise(40, 40)).save(target, kind)
    path = saved(tmp_path, "cut.jpg", target.getvalue()[: len(target.getvalue()) // 2])
    for read in (read_picture, read_pixels):
        with pytest.raises(DataError) as failure:
            read(path)
        assert "cut.jpg" in str(failure.value) and "\n" not in str(failure.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    """Neither is an empty file or a text with an image's suffix."""
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded") as failure:
        read_picture(saved(tmp_path, "a.jpg", data))
    assert "BytesIO" not in str(failure.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_picture(tmp_path / "none.jpg")


def test_the_pixel_limit_holds_before_decoding(tmp_path: Path) -> None:
    """A picture above the bound is refused by its header."""
    Pillow.fromarray(noise(20, 20)).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png", max_pixels=400).shape == (20, 20, 3)
    with pytest.raises(DataError, match="above the limit of 399"):
        read_picture(tmp_path / "a.png", max_pixels=399)
    Pillow.fromarray(noise(20, 20)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="above the limit of 399"):
        read_picture(tmp_path / "a.jpg", max_pixels=399)


def test_images_are_found_below_in_any_case_and_sorted(tmp_path: Path) -> None:
    """Suffixes in any case, folders at any depth, order by relative path; hidden and other files are left."""
    names = ["b/x.JPG", "a.jpeg", "b/c/d.Png", "z.webp", "q.TIF", "q.tiff", "m.bmp", "ünïcode/ä.jpg"]
    for name in [*names, "a.txt", ".hidden.jpg", ".cache/t.jpg", "b/._x.jpg", "jpg"]:
        saved(tmp_path, name, b"")
    (tmp_path / "folder.jpg").mkdir()
    assert find_images(tmp_path) == [tmp_path / name for name in sorted(names)]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """A link to a folder is entered, each folder once; broken links and pipes are no images."""
    root = tmp_path / "root"
    saved(root, "real/a.jpg", b"")
    outside = saved(tmp_path, "outside/b.jpg", b"")
    (root / "loop").symlink_to(root)
    (root / "alias").symlink_to(root / "real")
    (root / "far").symlink_to(outside.parent)
    (outside.parent / "back").symlink_to(root)
    (root / "link.jpg").symlink_to(outside)
    (root / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")
    assert find_images(root) == [root / "far/b.jpg", root / "link.jpg", root / "real/a.jpg"]


def test_no_image_names_the_folder_and_the_suffixes(tmp_path: Path) -> None:
    """An empty folder, a file and a missing folder are errors with what was looked for."""
    file = saved(tmp_path / "x", "a.txt", b"")
    for place in (tmp_path, file, tmp_path / "missing"):
        with pytest.raises(DataError) as failure:
            find_images(place)
        assert str(place) in str(failure.value) and "jpg, jpeg, png" in str(failure.value)
