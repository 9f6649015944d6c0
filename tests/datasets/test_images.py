"""The decoder: pixels of each format, which are the same in the test tool and in `Segmenter`."""

import io
import os
import threading

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from fsa_seg.datasets import images
from fsa_seg.datasets.data_sets import LoadImage
from fsa_seg.datasets.images import as_rgb, image_size, read_image
from fsa_seg.errors import UserError
from fsa_seg.system import files
from fsa_seg.visualization.pictures import GAP, TITLE

from conftest import MINI

PHOTO = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000033.jpg')
RGB = np.array(Image.open(PHOTO).convert('RGB'))[20:60, 30:90]
GREY = np.array(Image.fromarray(RGB).convert('L'))
ALPHA = np.arange(GREY.size, dtype=np.uint32).reshape(GREY.shape).astype(np.uint8)
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def pillow(array, name, mode=None, **options):
    picture = Image.fromarray(array)
    return lambda path: (picture.convert(mode) if mode else picture).save(path, **options)


def opencv(array):
    return lambda path: cv2.imwrite(path, array[..., ::-1])


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


GREY3 = np.repeat(GREY[..., None], 3, 2)
PALETTE = Image.fromarray(RGB).quantize(64)
CASES = {  # name of the file: (function that writes the file, pixels)
    'grey.png': (pillow(GREY, 'L'), GREY3),
    'bits.png': (
        lambda path: Image.fromarray(GREY > 99).save(path),
        np.repeat((GREY > 99)[..., None], 3, 2) * np.uint8(255),
    ),
    'palette.png': (PALETTE.save, np.array(PALETTE.convert('RGB'))),
    'clear.png': (lambda path: PALETTE.save(path, transparency=3), np.array(PALETTE.convert('RGB'))),
    'frames.gif': (
        lambda path: PALETTE.save(path, save_all=True, append_images=[PALETTE.rotate(180)]),
        np.array(PALETTE.convert('RGB')),
    ),
    'alpha.png': (pillow(np.dstack([RGB, ALPHA]), 'RGBA'), RGB),
    'alpha.tif': (pillow(np.dstack([RGB, ALPHA]), 'RGBA'), RGB),
    'alpha.webp': (pillow(np.dstack([RGB, ALPHA]), 'RGBA', lossless=True, exact=True), RGB),
    'greyalpha.png': (pillow(np.dstack([GREY, ALPHA]), 'LA'), GREY3),
    'cmyk.tif': (pillow(RGB, 'RGB', 'CMYK'), RGB),
    'plain.bmp': (pillow(RGB, 'RGB'), RGB),
    'lzw.tif': (pillow(RGB, 'RGB', compression='tiff_lzw'), RGB),
    'sixteen.png': (opencv(RGB.astype(np.uint16) * 257), RGB),
    'sixteen.tif': (opencv(RGB.astype(np.uint16) * 256 + 255), RGB),
    'grey16.png': (pillow(GREY.astype(np.uint16) * 257, 'I;16'), GREY3),
    'black16.png': (pillow(GREY.astype(np.uint16) * 0, 'I;16'), GREY3 * 0),
    **{
        f'turned{o}.{suffix}': (pillow(RGB, 'RGB', **options), TURNS[o](RGB))
        for o in TURNS
        for suffix, options in (
            ('png', dict(exif=exif(o))),
            ('tif', dict(tiffinfo={274: o})),
            ('webp', dict(exif=exif(o), lossless=True)),
        )
    },
}


@pytest.fixture(scope='module')
def segmenter():
    from fsa_seg import Segmenter

    return Segmenter(backbone='toy', method='maskclip', feedback=False, vfm='toy', device='cpu')


def pixels_shown(segmenter, image):
    """Return the pixels that `Segmenter` worked on, cut from the picture of its result."""
    segmentation = segmenter.segment(image, ['cat', 'grass'])
    height, width = segmentation.labels.shape
    return np.array(segmentation.picture)[GAP + TITLE : GAP + TITLE + height, GAP : GAP + width]


@pytest.mark.parametrize('name', CASES)
def test_formats(tmp_path, segmenter, name):
    """Pixels are right in the pipeline and in `Segmenter`, and the head gives their size."""
    write, expected = CASES[name]
    path = str(tmp_path / name)
    write(path)
    loaded = LoadImage().transform(dict(img_path=path))
    assert loaded['img'].dtype == np.uint8 and loaded['img'].flags.c_contiguous
    assert np.array_equal(loaded['img'][..., ::-1], expected)
    assert loaded['ori_shape'] == image_size(path) == image_size(path, decode=True) == expected.shape[:2]
    assert np.array_equal(pixels_shown(segmenter, path), expected)


@pytest.mark.parametrize(
    'suffix, options',
    [
        ('.jpg', dict(quality=90)),
        ('.jpg', dict(quality=40, subsampling=2)),
        ('.jpg', dict(exif=exif(6))),
        ('.webp', dict(quality=80)),
        ('.jpg', dict(mode='CMYK')),
        ('.jpg', dict(mode='L')),
        ('.png', {}),
    ],
)
def test_ordinary_files_are_decoded_as_mmcv_does(tmp_path, segmenter, suffix, options):
    path = str(tmp_path / f'a{suffix}')
    pillow(RGB, 'RGB', options.pop('mode', None), **options)(path)
    expected = mmcv.imread(path)
    assert np.array_equal(read_image(path, order='bgr'), expected)
    assert np.array_equal(read_image(path), expected[..., ::-1]) and np.array_equal(
        pixels_shown(segmenter, path), expected[..., ::-1]
    )


def test_pil_images_and_arrays(segmenter):
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(RGB)))
    stored.getexif()[274] = 6
    buffer = io.BytesIO()
    stored.save(buffer, 'PNG', exif=exif(6))
    for image in (Image.fromarray(RGB), RGB, Image.open(buffer)):
        assert np.array_equal(as_rgb(image), RGB)
    assert np.array_equal(pixels_shown(segmenter, Image.open(buffer)), RGB)
    for deep in (GREY.astype(np.uint16) * 257, GREY.astype(np.int32) * 257):  # I;16, I
        assert np.array_equal(as_rgb(Image.fromarray(deep)), GREY3)
    assert np.array_equal(as_rgb(Image.fromarray(np.dstack([RGB, ALPHA]))), RGB)
    for bad, message in (
        (Image.fromarray(GREY / np.float32(255)), 'the given image holds floats'),
        (Image.fromarray(GREY.astype(np.int32) - 300), 'the given image has values from -'),
        (GREY, 'give .height, width, 3. uint8'),
    ):
        with pytest.raises(UserError, match=message):
            as_rgb(bad)


@pytest.mark.parametrize(
    'name, write, message',
    [
        (
            'float.tif',
            lambda path: Image.fromarray(GREY / np.float32(255)).save(path),
            'float.tif holds floats, which have no 8-bit',
        ),
        (
            'floats.tif',
            lambda path: cv2.imwrite(path, RGB / np.float32(255)),
            'floats.tif cannot be decoded: its format is unknown, or',
        ),
        (
            'wide.tif',
            lambda path: Image.fromarray(GREY.astype(np.int32) * 70000).save(path),
            'wide.tif has values from .* no 8-bit',
        ),
        ('cut.png', lambda path: open(path, 'wb').write(open(PHOTO, 'rb').read()[:900]), 'cut.png cannot be decoded'),
        ('text.png', lambda path: open(path, 'w').write('no picture'), 'text.png cannot be decoded'),
        ('program.png', lambda path: Image.fromarray(RGB).save(path, 'EPS'), 'program.png is PostScript, .* a program'),
        ('none.png', lambda path: None, 'none.png cannot be read: No such file'),
        ('folder.png', os.mkdir, 'folder.png cannot be read: it is a folder'),
        ('fifo.png', os.mkfifo, 'fifo.png cannot be read: it is a FIFO'),
        ('link.png', lambda path: os.symlink('gone.png', path), 'link.png cannot be read: No such file'),
        (
            'huge.png',
            lambda path: Image.new('1', (14000, 14000)).save(path),
            'huge.png has more than 178956970 pixels.* cut it',
        ),
    ],
)
def test_a_file_without_an_image_is_an_error_of_one_line(tmp_path, segmenter, name, write, message):
    path = str(tmp_path / name)
    write(path)
    for read in (
        read_image,
        image_size,
        lambda path: image_size(path, decode=True),
        lambda path: segmenter.segment(path, ['a', 'b']),
        lambda path: LoadImage().transform(dict(img_path=path)),
    ):
        if read is image_size and name.startswith(('cut', 'wide')) and name != 'wide.tif':
            continue  # its head is whole
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert '\n' not in str(error.value)


def test_low_values_of_sixteen_bits(tmp_path):
    """12 bits in 16 are an error without `image_max`; a dark image needs the full range's."""
    path = str(tmp_path / 'a.png')
    opencv(RGB.astype(np.uint16) * 16)(path)
    largest = 16 * int(RGB.max())
    for read in (read_image, image_size):
        with pytest.raises(
            UserError,
            match=f'a.png has 16 bits, and no value above {largest}: it may be of 12 bits, '
            'or dark. '
            'Give the value of white: --image-max 4095 or, for a dark image, 65535',
        ):
            read(path)
    assert np.array_equal(read_image(path, 4095), RGB)
    assert np.array_equal(read_image(path, 65535), RGB // 16)
    with pytest.raises(UserError, match=f'has the value {largest}, above image_max 1023'):
        read_image(path, 1023)
    opencv(np.full((4, 4, 3), 16384, np.uint16))(path)
    assert (read_image(path) == 64).all()
    opencv(np.full((4, 4, 3), 16383, np.uint16))(path)
    with pytest.raises(UserError, match='no value above 16383: it may be of 14 bits'):
        read_image(path)
    with pytest.raises(UserError, match='no value above 4080'):
        as_rgb(Image.fromarray(np.full((4, 4), 4080, np.uint16)))


def test_images_beyond_the_free_memory(tmp_path, monkeypatch):
    """Only the head is read; no pixel is decoded."""
    path = str(tmp_path / 'a.png')
    Image.new('1', (3000, 3000)).save(path)
    free = 6 * 3000 * 3000
    monkeypatch.setattr(files, 'free_memory', lambda: free)
    assert read_image(path).shape == (3000, 3000, 3)
    monkeypatch.setattr(files, 'free_memory', lambda: free - 1)
    monkeypatch.setattr(images.cv2, 'imdecode', None)
    with pytest.raises(UserError, match='a.png of 3000×3000 pixels takes 0.1 GB of memory, and 0.1 GB are free'):
        read_image(path)
    monkeypatch.setattr(files, 'free_memory', lambda: os.path.getsize(path) - 1)
    with pytest.raises(UserError, match='the image .*a.png takes'):
        read_image(path)
    monkeypatch.undo()
    for memory, free in (((None, None), None), ((9216, 12288), 12288)):  # unknown free memory: every image is tried
        monkeypatch.setattr(files, 'memory', lambda memory=memory: memory)
        assert files.free_memory() == free
        if free is None:
            assert read_image(path).any() is np.False_


def test_reading_a_fifo_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    thread = threading.Thread(target=lambda: pytest.raises(UserError, as_rgb, str(tmp_path / 'a.png')), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_jpeg_that_is_cut_short(tmp_path, monkeypatch):
    """OpenCV 4 fills the rest with grey, without an error; bytes after the end do no harm."""
    path = tmp_path / 'a.jpg'
    content = open(PHOTO, 'rb').read()
    monkeypatch.setattr(images.cv2, 'imdecode', lambda *arguments: np.zeros((240, 320, 3), np.uint8))
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(UserError, match='a.jpg cannot be decoded: OSError: image file is truncated'):
        read_image(str(path))
    for ending in (b'', b'\0\0', b'trailer'):
        path.write_bytes(content + ending)
        assert read_image(str(path)).shape == (240, 320, 3)


def test_white_of_a_single_picture(run_tool, tmp_path):
    """The error names an option of the tool; with the option, results equal those of the 8-bit file."""
    picture = np.array(Image.open(os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000033.jpg')))[
        :64, :64
    ]
    Image.fromarray(picture).save(tmp_path / 'eight.png')
    cv2.imwrite(str(tmp_path / 'twelve.png'), picture[..., ::-1].astype(np.uint16) * 16)
    command = ('cat', 'grass', '--mini', '--method', 'clip', '--no-fsa', '--out', 'out.png')
    status, printed = run_tool('segment', 'twelve.png', *command)
    assert status == 1 and '--image-max 4095' in printed
    shares = []
    for name, arguments in (('eight.png', ()), ('twelve.png', ('--image-max', 4095))):
        shares.append(
            [line for line in run_tool('segment', name, *command, *arguments)[1].splitlines() if '%  ' in line]
        )
    assert shares[0] == shares[1] and len(shares[0]) == 2
