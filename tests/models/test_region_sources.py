"""Sources of region maps: files, VFM features, mask generators, and the cache."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fsa_seg.errors import UserError
from fsa_seg.models.regions import build_regions, read_map
from fsa_seg.ops.regions import feature_regions

TINY_SAM2 = dict(
    vision_config=dict(
        backbone_config=dict(
            model_type='sam2_hiera_det_model',
            hidden_size=16,
            image_size=[128, 128],
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[16, 32, 64, 128],
            num_attention_heads_per_stage=[1, 1, 2, 2],
            window_size_per_stage=[8, 4, 8, 4],
            global_attention_blocks=[3],
        ),
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    ),
    prompt_encoder_config=dict(hidden_size=32, image_size=128, mask_input_channels=4),
    mask_decoder_config=dict(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16),
)
TINY_MASK2FORMER = dict(
    backbone_config=dict(
        model_type='swin',
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    ),
    feature_size=32,
    mask_feature_size=32,
    hidden_dim=32,
    encoder_feedforward_dim=32,
    dim_feedforward=32,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    num_queries=10,
)
GENERATORS = dict(
    sam2=dict(type='sam2', points=3, random_weights=0, model_args=TINY_SAM2),
    mask2former=dict(type='mask2former', random_weights=0, model_args=TINY_MASK2FORMER, side=64, threshold=0.0),
)


class Picture:
    """An image of a file, as a pass hands it to a source; its VFM averages blocks of 4×8 pixels."""

    def __init__(self, path=None, size=(40, 60), seed=0, weights='w'):
        torch.manual_seed(seed)
        pixels = F.interpolate(torch.rand(1, 3, 3, 4), size, mode='nearest')[0]
        self.array = (pixels * 255).byte().permute(1, 2, 0).numpy()
        self.path, self.size, self.calls, self.runs = path and str(path), size, 0, []
        self._weights = weights
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.array).save(path)

    def original(self):
        self.calls += 1
        return torch.from_numpy(self.array).permute(2, 0, 1).float() / 255

    def run(self, role, pixels, kind):
        self.runs.append((role, tuple(pixels.shape), kind))
        return F.avg_pool2d(pixels, (4, 8)) + 0.1

    def multiple(self, role):
        return 4, 8

    def weights(self, role):
        return self._weights


def write_png(path, labels, mode=None, **entries):
    text = PngInfo()
    for key, value in entries.items():
        text.add_text(key, value)
    image = Image.fromarray(labels)
    if mode == 'P':
        image.putpalette([7] * 768)  # all colours are alike: the indices count
        assert image.mode == 'P'
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=text)


def labels_of(size=(40, 60), most=5, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, most, size).astype(dtype)


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


FORMATS = {
    '8 bit': (np.uint8, None, '{name}.png'),
    '16 bit': (np.uint16, None, '{name}.png'),
    'palette': (np.uint8, 'P', 'masks_{name}.png'),
    'npy': (np.int64, None, '{name}.npy'),
    'npy of uint32': (np.uint32, None, '{path}.npy'),
}


@pytest.mark.parametrize('name', FORMATS)
def test_maps_from_files(name, tmp_path):
    dtype, mode, pattern = FORMATS[name]
    image = Picture(tmp_path / 'images' / 'val' / 'a.jpg')
    labels = labels_of(most=250 if dtype == np.uint8 else 60000, dtype=dtype)
    path = tmp_path / 'maps' / pattern.format(name='a', path='val/a')
    path.parent.mkdir(parents=True)
    np.save(path, labels) if pattern.endswith('.npy') else write_png(path, labels, mode)
    source = build_regions(
        dict(type='files', folder=str(tmp_path / 'maps'), pattern=pattern, root=str(tmp_path / 'images'))
    )
    source.check([image.path], [image.size])
    found = source.maps(image)
    assert found.dtype == torch.int32 and np.array_equal(found.numpy(), labels.astype(np.int64))
    assert source.role is None and image.calls == 0


def files(tmp_path, names='ab'):
    images = [Picture(tmp_path / 'images' / f'{name}.png', seed=i) for i, name in enumerate(names)]
    for name in names:
        write_png(tmp_path / 'maps' / f'{name}.png', labels_of())
    return images, build_regions(dict(type='files', folder=str(tmp_path / 'maps')))


def test_digest_of_files(tmp_path):
    """It is that of the maps that were checked, or of all; other maps beside them do not count once checked."""
    images, source = files(tmp_path, 'abc')
    whole = source.digest
    source.check([image.path for image in images[:2]])
    some = source.digest
    write_png(tmp_path / 'maps' / 'c.png', labels_of(most=9))
    assert source.digest == some != whole
    write_png(tmp_path / 'maps' / 'b.png', labels_of(most=9))
    assert source.digest != some
    assert build_regions(dict(type='files', folder=str(tmp_path / 'maps'))).digest != whole


def test_a_map_of_the_right_image_and_of_another(tmp_path):
    (image, _), source = files(tmp_path)
    write_png(tmp_path / 'maps' / 'a.png', labels_of(), image_sha256=sha(tmp_path / 'images' / 'a.png'))
    source.check([image.path], [image.size])
    other = sha(tmp_path / 'images' / 'b.png')
    write_png(tmp_path / 'maps' / 'a.png', labels_of(), image_sha256=other)
    with pytest.raises(UserError, match=rf'maps/a.png was made of another image than .*images/a.png.*{other[:16]}'):
        source.check([image.path], [image.size])
    with pytest.raises(UserError, match='was made of another image'):
        source.maps(image)


def test_missing_maps(tmp_path):
    images, source = files(tmp_path, 'abcd')
    for name in 'bd':
        (tmp_path / 'maps' / f'{name}.png').unlink()
    write_png(tmp_path / 'maps' / 'a.png', labels_of((3, 3)))  # a later fault: absent maps are said first
    with pytest.raises(UserError, match=r'2 of 4 images have no region map; the first is .*images/b.png, whose map'):
        source.check([image.path for image in images], [image.size for image in images])
    with pytest.raises(UserError, match='the region map .*maps/b.png cannot be read'):
        source.maps(images[1])


def damaged(path):
    path.write_bytes(path.read_bytes()[:60])


BAD = {
    'size': (lambda path: write_png(path, labels_of((40, 61))), 'has 40×61 pixels, its image .*a.png 40×60'),
    'one region': (lambda path: write_png(path, labels_of(most=1)), 'is a single region'),
    'colour': (lambda path: write_png(path, np.zeros((40, 60, 3), np.uint8)), r'has the shape \(40, 60, 3\)'),
    'damaged': (damaged, 'maps/a.png cannot be decoded'),
    'no image': (lambda path: path.write_text('labels'), 'maps/a.png cannot be decoded'),
}


@pytest.mark.parametrize('fault', BAD)
def test_unusable_maps(fault, tmp_path):
    images, source = files(tmp_path)
    spoil, message = BAD[fault]
    spoil(tmp_path / 'maps' / 'a.png')
    with pytest.raises(UserError, match=message):
        source.check([image.path for image in images], [image.size for image in images])
    with pytest.raises(UserError, match=message):
        source.maps(images[0])


@pytest.mark.parametrize(
    'array, message',
    [
        (np.random.rand(40, 60), 'holds values of type float64; labels of regions are whole numbers'),
        (np.zeros((1, 40, 60), int), r'has the shape \(1, 40, 60\)'),
        (np.full((40, 60), 2**31), r'has labels from 2147483648 to 2147483648, beyond 32 bits'),
        (np.array([[{}]]), 'cannot be decoded'),
    ],
)
def test_unusable_arrays(array, message, tmp_path):
    np.save(tmp_path / 'a.npy', array)
    with pytest.raises(UserError, match=message):
        read_map(str(tmp_path / 'a.npy'))


def test_floats_in_an_image(tmp_path):
    Image.fromarray(np.random.rand(4, 6).astype(np.float32)).save(tmp_path / 'a.tiff')
    (tmp_path / 'a.tiff').rename(tmp_path / 'a.png')
    with pytest.raises(UserError, match='holds values of type float32'):
        read_map(str(tmp_path / 'a.png'))


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='sam'), "unknown source of region maps 'sam'"),
        (dict(folder='maps'), 'source of region maps'),
        (dict(type='vfm', seed=3), "unknown key 'seed' in the region source vfm .did you mean 'seeds'"),
        (dict(type='vfm', seeds=0), 'the region source vfm: seeds is 0; it has to be a whole number, 1'),
        (dict(type='vfm', temperature=0), 'temperature is 0'),
        (dict(type='vfm', cache=5), 'cache is 5'),
        (dict(type='sam2', pred_iou=1.5), 'pred_iou is 1.5; it has to be a number, 0 to 1'),
        (dict(type='sam2', model_args={}), 'model_args belong to random weights'),
        (dict(type='files', folder='nowhere'), "the folder of region maps 'nowhere' does not exist"),
        (dict(type='files', folder='.', cache='maps'), 'its maps are files already; leave out cache'),
        (dict(type='files', folder='.', pattern='map.png'), r"pattern is 'map.png'; it has to hold \{name\}"),
        (dict(type='files', folder='.', pattern='{nam}.png'), r'it has to hold \{name\}'),
        (dict(type='files', folder='.', pattern='{name}.jpg'), 'to end in .png or .npy'),
        (dict(type='files', folder='.', pattern='{path}.png'), r'\{path\} is below `root`'),
    ],
)
def test_refused(config, message):
    with pytest.raises(UserError, match=message):
        build_regions(config)


def test_images_without_a_file_or_outside_root(tmp_path):
    _, source = files(tmp_path)
    with pytest.raises(UserError, match='region maps from files need images from files'):
        source.maps(Picture())
    source = build_regions(
        dict(type='files', folder=str(tmp_path), pattern='{path}.png', root=str(tmp_path / 'images'))
    )
    with pytest.raises(UserError, match='does not lie below'):
        source.check([str(tmp_path / 'other' / 'a.png')])


@pytest.mark.parametrize('size', [(40, 60), (60, 40), (7, 300), (41, 60)])
def test_regions_of_a_vfm(size):
    """The longest side is 96 pixels, both sides multiples of the patch; labels are blocks of pixels, from 1."""
    image, source = Picture(size=size), build_regions(dict(type='vfm', side=96, seeds=5))
    found = source.maps(image)
    default = Picture(size=size)
    build_regions(dict(type='vfm')).maps(default)
    assert max(default.runs[0][1][2:]) == 56 * 8  # patches of the larger side, which is 8 pixels
    sides = {(40, 60): (64, 96), (60, 40): (96, 64), (7, 300): (4, 96), (41, 60): (64, 96)}[size]
    assert image.runs == [('regions', (1, 3, *sides), 'tokens')] and (source.role, source.kind) == ('regions', 'tokens')
    pixels = F.interpolate(image.original()[None], sides, mode='bilinear', antialias=True)
    grid = sides[0] // 4, sides[1] // 8
    cells = feature_regions((F.avg_pool2d(pixels, (4, 8)) + 0.1)[0].flatten(1), 5).argmax(0).view(grid)
    for y in range(0, size[0], 3):
        for x in range(0, size[1], 7):
            assert found[y, x] == 1 + cells[y * grid[0] // size[0], x * grid[1] // size[1]]
    assert found.dtype == torch.int32 and found.shape == size and torch.equal(found, source.maps(image))
    assert 1 < len(found.unique()) <= 5 and found.min() >= 1


def test_digest_of_a_vfms_settings():
    digests = {
        build_regions(dict(type='vfm', **s)).digest for s in ({}, dict(side=448), dict(seeds=32), dict(rounds=1))
    }
    assert len(digests) == 4


def test_cache(tmp_path):
    config = dict(type='vfm', side=96, seeds=5, cache=str(tmp_path / 'cache'))
    image, source = Picture(tmp_path / 'images' / 'a.png'), build_regions(config)
    first = source.maps(image)
    (path,) = (tmp_path / 'cache').glob('*/*')
    assert path.name == 'a.png' and image.calls == 1 and len(path.parent.name) == 16
    labels, entries = read_map(str(path))
    assert Image.open(path).mode.startswith('I') and np.array_equal(labels, first.numpy())
    assert entries['image_sha256'] == sha(tmp_path / 'images' / 'a.png')
    assert torch.equal(build_regions(config).maps(image), first) and image.calls == 1  # read again
    assert build_regions(config).digest == build_regions({**config, 'cache': 'elsewhere'}).digest

    def of_another_size(path):
        write_png(path, labels_of((20, 30)), **entries)

    for spoil in (
        damaged,
        lambda path: path.write_text(''),
        lambda path: write_png(path, labels_of()),
        of_another_size,
    ):
        spoil(path)
        before = image.calls
        assert torch.equal(source.maps(image), first) and image.calls == before + 1
        assert torch.equal(source.maps(image), first) and image.calls == before + 1

    other = Picture(tmp_path / 'images' / 'a.png', seed=1)  # another image of the name
    second = source.maps(other)
    assert other.calls == 1 and not torch.equal(second, first)
    source.maps(Picture(tmp_path / 'images' / 'a.png', weights='other'))
    assert len(list((tmp_path / 'cache').glob('*/*'))) == 2  # one for each VFM's weights
    build_regions({**config, 'seeds': 4}).maps(other)
    assert len(list((tmp_path / 'cache').glob('*/*'))) == 3 and not list(tmp_path.rglob('*.part'))


def test_cache_of_an_image_without_a_file(tmp_path):
    source = build_regions(dict(type='vfm', side=96, cache=str(tmp_path / 'cache')))
    assert source.maps(Picture()).shape == (40, 60) and not (tmp_path / 'cache').exists()


@pytest.fixture
def transformers():
    return pytest.importorskip('transformers', reason="transformers is not installed (pip install 'fsa-seg[masks]')")


@pytest.mark.parametrize('name', GENERATORS)
def test_mask_generators(name, transformers, tmp_path):
    image, config = Picture(tmp_path / 'a.png'), {**GENERATORS[name], 'cache': str(tmp_path / 'cache')}
    if name == 'sam2':
        config.update(pred_iou=0.0, stability=0.0)
    source = build_regions(config)
    found = source.maps(image)
    assert found.shape == image.size and found.dtype == torch.int32 and found.min() >= 0
    assert torch.equal(build_regions(config).maps(image), found) and image.calls == 1
    config.pop('cache')
    assert torch.equal(build_regions(config).maps(image), found) and image.calls == 2
    other = build_regions({**config, 'random_weights': 1})
    assert other.digest != source.digest == build_regions(config).digest
    key = dict(sam2='points', mask2former='threshold')[name]
    assert build_regions({**config, key: 1}).digest != source.digest


def shaken(source, scale, seed=0):
    """Return a source whose random weights are large enough for masks."""
    torch.manual_seed(seed)
    for parameter in source.module.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return source


@pytest.mark.parametrize('seed', range(3))
def test_sam2_equals_one_pass_for_each_point(seed, transformers):
    """Image and point go through the whole model anew for each point."""
    settings = dict(points=4, pred_iou=0.3, stability=0.6)
    source, image = shaken(build_regions({**GENERATORS['sam2'], **settings}), 0.25, seed), Picture()
    pixels = F.interpolate(image.original()[None], (128, 128), mode='bilinear', antialias=True)
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    masks = []
    for row in range(4):
        for column in range(4):
            point = torch.tensor([[[[32 * column + 16.0, 32 * row + 16.0]]]])
            found = source.module(pixel_values=pixels, input_points=point, multimask_output=False)
            logits = F.interpolate(found.pred_masks[0], (40, 60), mode='bilinear')[0, 0]
            iou, mask = float(found.iou_scores), logits > 0
            if iou > 0.3 and mask.any() and (logits > 1).sum() > 0.6 * (logits > -1).sum():
                ys, xs = mask.nonzero().T
                masks.append((iou, mask, [xs.min(), ys.min(), xs.max(), ys.max()]))

    def overlap(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(0, width) * max(0, height)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    kept = []
    for _, mask, box in sorted(masks, key=lambda entry: -entry[0]):
        if all(overlap(box, other) <= 0.7 for _, other in kept):
            kept.append((mask, box))
    expected = torch.zeros(40, 60, dtype=torch.int32)
    for label, (mask, _) in enumerate(sorted(kept, key=lambda entry: int(entry[0].sum())), 1):
        expected[mask] = label
    assert kept and torch.equal(source.maps(image), expected)


def test_mask2former_equals_transformers(transformers):
    source, image = shaken(build_regions(GENERATORS['mask2former']), 0.1), Picture()
    source.module.class_predictor.bias.data[:-1] += 3
    processor = transformers.Mask2FormerImageProcessor(size=dict(shortest_edge=64, longest_edge=128))
    inputs = processor(images=[Image.fromarray(image.array)], return_tensors='pt')
    with torch.no_grad():
        outputs = source.module(**inputs)
    (expected,) = processor.post_process_panoptic_segmentation(outputs, threshold=0.0, target_sizes=[(40, 60)])
    found = source.maps(image)
    assert torch.equal(found, expected['segmentation']) and len(found.unique()) == 4
    assert shaken(build_regions({**GENERATORS['mask2former'], 'threshold': 0.99}), 0.1).maps(image).eq(0).all()


class Decoder:
    """Stands for SAM2: a mask of each point is a square about it; the predicted IoU is that of `score`."""

    def __init__(self, radius, score):
        self.radius, self.score = radius, score
        self.config = type('Config', (), {'prompt_encoder_config': type('Part', (), {'image_size': 32})})

    def get_image_embeddings(self, pixels):
        assert pixels.shape == (1, 3, 32, 32)
        return [pixels]

    def __call__(self, image_embeddings, input_points, input_labels, multimask_output):
        assert input_labels.all() and not multimask_output
        y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing='ij')
        masks, scores = [], []
        for px, py in input_points[0, :, 0].tolist():
            distance = torch.maximum((x - px).abs(), (y - py).abs())
            masks.append(5 * (self.radius(px, py) - distance).sign())
            scores.append(self.score(px, py))
        found = type('Found', (), {})()
        found.pred_masks, found.iou_scores = torch.stack(masks)[None, :, None], torch.tensor(scores)[None, :, None]
        return found


def sam2_with(decoder, **settings):
    source = build_regions(dict(type='sam2', points=2, **settings))
    source.on = lambda device: decoder
    return source.maps(Picture(size=(32, 32)))


def test_larger_masks_are_painted_over_smaller_ones():
    """Points at 8 and 24. The upper left mask is the largest, and covers a part of its neighbours; the rest is 0."""
    found = sam2_with(Decoder(lambda x, y: {(8, 8): 10, (24, 8): 7, (8, 24): 8, (24, 24): 3}[x, y], lambda x, y: 0.9))
    assert found[8, 8] == 4 and found[24, 24] == 1 and found[8, 24] == 2 and found[24, 8] == 3 and found[31, 31] == 0
    assert found[17, 8] == 4 and found[8, 17] == 4  # both masks lie there


def test_masks_of_low_predicted_iou_are_dropped():
    found = sam2_with(Decoder(lambda x, y: 5, lambda x, y: 0.41 if x == 8 else 0.4))
    assert found.unique().tolist() == [0, 1, 2] and found[:, 16:].eq(0).all()


def test_unstable_masks_are_dropped(monkeypatch):
    """Logits of 0.83 are above 0, and not above the offset 1; stable are masks without them."""
    decoder = Decoder(lambda x, y: 5, lambda x, y: 0.9)
    call = Decoder.__call__

    def weak(self, **inputs):
        found = call(self, **inputs)
        found.pred_masks[0, 0] /= 6
        found.pred_masks[0, 1] /= 4
        return found

    monkeypatch.setattr(Decoder, '__call__', weak)
    found = sam2_with(decoder)
    assert found[8, 8] == 0 and len(found.unique()) == 4


@pytest.mark.parametrize('radius, count', [(21, 1), (18, 2)])
def test_boxes_that_overlap_by_0_7(radius, count):
    """Of a mask of all pixels and a smaller one: their boxes overlap by 0.82 or 0.65."""
    radii = {(8, 8): 40, (24, 8): radius}
    found = sam2_with(Decoder(lambda x, y: radii.get((x, y), 0), lambda x, y: 0.9 - x / 100), pred_iou=0.0)
    assert (found == count).all()  # the larger one is on top


def test_of_like_masks_the_likeliest_is_kept():
    found = sam2_with(Decoder(lambda x, y: 40, lambda x, y: 0.5 + x / 100))
    assert found.unique().tolist() == [1]
    assert sam2_with(Decoder(lambda x, y: 0, lambda x, y: 0.9)).eq(0).all()


@pytest.mark.parametrize('name', GENERATORS)
def test_without_transformers(name, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(UserError, match=r"cannot be loaded .*: pip install 'fsa-seg\[masks\]'"):
        build_regions(GENERATORS[name]).maps(Picture())


@pytest.mark.parametrize('name', GENERATORS)
def test_absent_weights(name, transformers, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': name}))
    with pytest.raises(UserError, match='cannot be read|could not be loaded'):
        build_regions(dict(type=name, model=str(tmp_path))).maps(Picture())


def test_a_local_folder_of_weights(transformers, tmp_path):
    """It gives what the model of random weights gives that was saved there, and no other digest for another place."""
    config = GENERATORS['sam2']
    build_regions(config).module.save_pretrained(tmp_path / 'sam2')
    local = build_regions(dict(type='sam2', points=3, model=str(tmp_path / 'sam2'), pred_iou=0.0, stability=0.0))
    same = build_regions({**config, 'pred_iou': 0.0, 'stability': 0.0})
    assert torch.equal(local.maps(Picture()), same.maps(Picture()))
    assert local.digest == same.digest
