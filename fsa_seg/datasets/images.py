"""Images as (height, width, 3) uint8: the decoder of all tools.

Pillow reads the head. OpenCV decodes, as in MMSegmentation: JPEG decoders differ in their last bits. Every image is
turned upright by its EXIF orientation. An alpha channel is dropped, and of several frames the first is used.
"""

import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fsa_seg.errors import UserError, one_line
from fsa_seg.system.files import check_memory, check_regular, read_file

WHITE = 65535  # of 16 bits
LOW = 1 << 14  # a 16-bit image without greater values has at most 14 bits, or is dark: the file does not say which
# OpenCV does not turn images: its versions differ in the formats that they turn
FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
TURNS = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}  # orientation -> function that turns the image upright
JPEG_END = b'\xff\xd9'
ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT = 274, 256, 257  # numbers of tags


class Head(NamedTuple):
    """An image file's head, read without decoding the image.

    Attributes:
        format (str), mode (str): in Pillow's words.
        size (tuple): height and width of the upright image, in pixels.
        orientation (int): EXIF's, 1 to 8.
        deep (bool): whether the image has more than 8 bits a channel.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    deep: bool


def read_image(path: str, image_max: int | None = None, order: str = 'rgb') -> np.ndarray:
    """Return an image file as (height, width, 3) uint8.

    A 16-bit value v becomes 256·v // (image_max + 1): v // 256 for the full range.

    Args:
        path: the file.
        image_max: the value of white in 16-bit files. By default 65535, and an image without values from 16384 is an
            error.
        order: 'rgb' or 'bgr'.

    Raises:
        UserError: the path is no regular file, or the image is damaged, larger than the free memory, of floats, of more
            than 16 bits, or has values above `image_max`.
    """
    image = _decode(read_file(path, 'the image'), f'the image {path}', image_max)
    return image if order == 'bgr' else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_image(data: bytes, what: str, image_max: int | None = None) -> np.ndarray:
    """Return the image in a file's bytes as (height, width, 3) uint8 RGB, see `read_image`.

    Args:
        data: the file's content.
        what: the error's subject, such as 'the image a.png'.
        image_max: see `read_image`.
    """
    return cv2.cvtColor(_decode(data, what, image_max), cv2.COLOR_BGR2RGB)


def as_rgb(image: str | Image.Image | np.ndarray, image_max: int | None = None) -> np.ndarray:
    """Return a path's image, a PIL image or an array as (height, width, 3) uint8 RGB, see `read_image`.

    An array must be (height, width, 3) uint8 RGB already.
    """
    if isinstance(image, Image.Image):
        return _pillow_rgb(image, 'the given image', image_max)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f'the image has shape {image.shape} and type {image.dtype}; give (height, width, 3) uint8')
        return image
    return read_image(image, image_max)


def image_size(path: str, decode: bool = False, image_max: int | None = None) -> tuple[int, int]:
    """Return the height and width of the upright image, in pixels; a damaged image is a UserError.

    Args:
        path: the image file.
        decode: decode the image. Else the head is read, and only a 16-bit image is decoded.
        image_max: see `read_image`.
    """
    check_regular(path, 'the image')
    head = _read_head(path, f'the image {path}')
    if decode or head.deep:
        return _decode(read_file(path, 'the image'), f'the image {path}', image_max).shape[:2]
    return head.size


def open_image(source: str | bytes, what: str) -> Image.Image:
    """Return the PIL image of a path or of bytes, not decoded yet; an image that Pillow cannot open is a UserError.

    Args:
        source: a file's path or its content.
        what: the error's subject, such as 'the image a.png'.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnidentifiedImageError:
        raise UserError(
            f'{what} cannot be decoded: its format is unknown, or its values are no whole numbers of 8 or 16 bits'
        ) from None
    except Image.DecompressionBombError:
        raise UserError(
            f'{what} has more than {2 * Image.MAX_IMAGE_PIXELS} pixels, which is the most (the limit of '
            'Pillow); make it smaller, or cut it into parts'
        ) from None
    except Exception as error:  # the decoders raise many kinds
        raise UserError(f'{what} cannot be decoded: {one_line(error)}') from None
    if image.format == 'EPS':  # Pillow would write it to a file, and run it by Ghostscript
        image.close()
        raise UserError(f'{what} is PostScript, which is a program; save it as PNG or JPEG')
    return image


def _read_head(source, what):
    """Return the `Head` of a path or of bytes; floats are a UserError."""
    with open_image(source, what) as image:
        try:
            tags = getattr(image, 'tag_v2', None)  # of TIFF: some versions of Pillow give the upright size at once
            width, height = (tags[TIFF_WIDTH], tags[TIFF_HEIGHT]) if tags else image.size
            orientation = Image.Image.getexif(image).get(ORIENTATION, 1)  # a PNG's own getexif decodes the image
            deep = image.mode.startswith('I') or any('16' in str(tile[3]) for tile in image.tile or ())
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'{what} cannot be decoded: {one_line(error)}') from None
        _refuse_floats(image, what)
        size = (width, height) if orientation in SIDEWAYS else (height, width)
        return Head(image.format, image.mode, size, orientation, deep)


def _decode(data, what, image_max=None):
    """Return the image in a file's bytes as (height, width, 3) uint8 BGR, see `read_image`."""
    head = _read_head(data, what)
    height, width = head.size
    check_memory(height * width * (33 if head.deep else 6), f'{what} of {height}×{width} pixels')
    _check_whole(data, head, what)
    image, tiff = None, head.format == 'TIFF'
    if (tiff, head.mode, head.deep) != (True, 'RGBA', False):  # OpenCV multiplies such TIFF files by alpha
        image = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS)
    if image is None:  # a format that OpenCV lacks, or a damaged file
        with open_image(data, what) as opened:
            return np.ascontiguousarray(_pillow_rgb(opened, what, image_max)[..., ::-1])
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f'{what} has values of type {image.dtype}, which have no 8-bit meaning; save it with 8 bits')
    if not tiff and head.orientation in TURNS:  # OpenCV turns TIFF files itself
        image = np.ascontiguousarray(TURNS[head.orientation](image))
    return _eight_bits(image, what, image_max) if image.dtype == np.uint16 else image


def _check_whole(data, head, what):
    """Raise a UserError if a JPEG file is cut short; OpenCV 4 fills the rest with grey, without an error."""
    if head.format in ('JPEG', 'MPO') and not data.rstrip(b'\0').endswith(JPEG_END):
        with open_image(data, what) as image:
            try:
                image.draft('RGB', (1, 1))  # decode an eighth of the size: enough to find the end
                image.load()
            except Exception as error:  # the decoders raise many kinds
                raise UserError(f'{what} cannot be decoded: {one_line(error)}') from None


def _pillow_rgb(image, what, image_max=None):
    """Return a PIL image as upright RGB, see `read_image`."""
    _refuse_floats(image, what)
    check_memory(8 * image.width * image.height, f'{what} of {image.height}×{image.width} pixels')
    try:
        image = ImageOps.exif_transpose(image)
        if not image.mode.startswith('I'):
            return np.array(image.convert('RGB'))
        values = np.array(image)
    except Exception as error:  # the decoders raise many kinds
        raise UserError(f'{what} cannot be decoded: {one_line(error)}') from None
    if values.min() < 0 or values.max() > WHITE:
        raise UserError(
            f'{what} has values from {values.min()} to {values.max()}, which have no 8-bit meaning; save it with 8 bits'
        )
    return np.repeat(_eight_bits(values, what, image_max)[..., None], 3, 2)


def _refuse_floats(image, what):
    """Raise a UserError if a PIL image holds floats."""
    if image.mode == 'F':
        raise UserError(
            f'{what} holds floats, which have no 8-bit meaning; save it with 8 bits (values of 0 to 1 times 255)'
        )


def _eight_bits(values, what, image_max):
    """Return 16-bit values as uint8; values from which white cannot be told are a UserError."""
    largest = int(values.max())
    if image_max is None and 0 < largest < LOW:
        bits = largest.bit_length()
        raise UserError(
            f'{what} has 16 bits, and no value above {largest}: it may be of {bits} bits, or dark. Give '
            f'the value of white: --image-max {(1 << bits) - 1} or, for a dark image, {WHITE} (in a '
            'config, image_max); or save the image with 8 bits'
        )
    if image_max is not None and largest > image_max:
        raise UserError(
            f'{what} has the value {largest}, above image_max {image_max}; raise --image-max (in a config, image_max)'
        )
    return (values.astype(np.uint32) * 256 // (1 + (image_max or WHITE))).astype(np.uint8)
