"""What the pictures of this folder share: ink, paper, the font, swatches with names."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, FAINT, GRID, PAPER = (32, 33, 36), (95, 99, 104), (226, 228, 231), (255, 255, 255)
MARGIN = 24
TITLE_SIZE, TEXT_SIZE = 20, 16
SWATCH, _PAD, _LINE = 18, 8, 30


def font(size: int) -> Font:
    """Pillow's own font, which every installation has, at `size` pixels."""
    return ImageFont.load_default(size=size)


def legend(entries: Sequence[tuple[str, Rgb | Image.Image]], width: int) -> Image.Image:
    """Swatches with names, wrapped to `width` pixels; a swatch is a colour or a picture, `SWATCH` squared."""
    face = font(TEXT_SIZE)
    places: list[tuple[int, int]] = []
    x = y = 0
    for name, _ in entries:
        needed = SWATCH + _PAD + round(face.getlength(name)) + 3 * _PAD
        if x and x + needed > width:
            x, y = 0, y + _LINE
        places.append((x, y))
        x += needed
    picture = Image.new("RGB", (width, y + _LINE), PAPER)
    draw = ImageDraw.Draw(picture)
    for (name, patch), (left, top) in zip(entries, places, strict=True):
        box = (left, top + 4, left + SWATCH, top + 4 + SWATCH)
        picture.paste(patch, box)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=FAINT)
        draw.text((left + SWATCH + _PAD, top + 4 + SWATCH / 2), name, INK, face, anchor="lm")
    return picture


def fitted(text: str, face: Font, width: int) -> str:
    """`text`, shortened to `width` pixels."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
