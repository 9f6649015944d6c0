import base64
import io
import itertools
import json
import re
from importlib.resources import files
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from fsa_seg.datasets.palette import even_palette
from fsa_seg.visualization.colors import FAR, WHITE, class_colors

pytest.importorskip('gradio')
from fsa_seg.apps.demo import views  # noqa: E402
from fsa_seg.apps.demo.comparison import preview_size  # noqa: E402

HTML = '<img src=x onerror="alert(1)">${value}{{value}}'


def decoded(address):
    kind, data = address.split(';base64,')
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f'data:image/{image.format.lower()}'
    return np.asarray(image)


def classes_of(address):
    pixels = decoded(address).astype(int)
    return pixels[..., 0] + 256 * pixels[..., 1]


def least_distance(colors):
    """Return the least distance of two colours in CIELAB."""
    places = cv2.cvtColor(np.array([colors], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return min(np.linalg.norm(one - other) for one, other in itertools.combinations(places, 2))


def test_an_index_address_holds_each_class():
    labels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    found = classes_of(views.index_address(labels, labels.shape, 500))
    assert np.array_equal(found, np.where(labels < 500, labels, views.VOID))
    labels = np.array([[0, 1], [255, 2]], np.uint8)  # 8 bits, which do not hold VOID
    assert classes_of(views.index_address(labels, (2, 2), 3)).tolist() == [[0, 1], [views.VOID, 2]]


def test_a_smaller_index_address_takes_labels_at_the_centres():
    labels = np.repeat(np.repeat([[3, 300], [7, 9]], 30, 0), 50, 1)
    assert classes_of(views.index_address(labels, (2, 2))).tolist() == [[3, 300], [7, 9]]
    assert preview_size((8000, 6000)) == (1024, 768)
    assert preview_size((1, 9000)) == (1, 1024)
    assert preview_size((20, 30)) == (20, 30)


def test_a_row_has_the_shares_of_the_original():
    labels = np.full((700, 10), 2, np.uint8)  # more rows than are counted at once
    labels[:70], labels[-70:] = 0, 255
    row = views.stage_row('SCLIP', labels, 4)
    assert row['shares'] == [0.1, 0, 0.8, 0]


def test_few_classes_have_colours_that_do_not_depend_on_the_rows():
    rows = [views.stage_row('a', np.full((2, 2), label, np.uint8), 12) for label in range(3)]
    colors = views.shown_colors(12, [])
    assert colors == views.shown_colors(12, rows) == class_colors(12)
    assert least_distance([*colors, WHITE]) >= FAR


def test_many_classes_differ_where_rows_show_them():
    labels = np.arange(240, 248, dtype=np.uint16)[None]
    rows = [views.stage_row('a', labels, 500), views.stage_row('b', labels[:, ::-1], 500)]
    colors = views.shown_colors(500, rows)
    assert least_distance(colors[240:248]) >= FAR
    assert colors[0] == even_palette(500)[0]


def test_a_stage_lists_what_some_row_shows_largest_first():
    first = views.stage_row('a', np.array([[0, 0, 0, 2]], np.uint8), 4)
    second = views.stage_row('b', np.array([[0, 2, 2, 3]], np.uint8), 4, caption='IoU 40.0')
    classes = ['sky; clouds', 'sky', 'chest of drawers;chest', HTML]
    value = views.stage_value(None, classes, [first, second], views.shown_colors(4, []), clickable=True)
    assert value['legend'] == [0, 2, 3]
    assert [each['name'] for each in value['classes']] == ['sky; clouds', 'sky', 'chest of drawers', HTML]
    assert all(re.fullmatch('#[0-9a-f]{6}', each['color']) for each in value['classes'])
    assert json.loads(json.dumps(value)) == value


def test_a_long_word_is_cut():
    value = views.stage_value(None, ['a' * 10_000], [], [(0, 0, 0)])
    assert len(value['classes'][0]['full']) == len(value['classes'][0]['name']) == views.LONGEST


def test_a_map_covers_its_window():
    preview = np.full((100, 200, 3), 200, np.uint8)
    values = np.array([[0.0, -np.inf], [1.0, 0.5]])
    tile = decoded(views.heat_address(preview, (400, 0, 800, 400), values, (400, 800))).astype(int)
    assert tile.shape == (240, 480, 3)
    assert np.allclose(tile[:, :230], 80, atol=6)  # outside of the window: grey, 0.4 as bright
    assert tile[60, 300].max() < 20  # least value
    assert np.allclose(tile[60, 420], 80, atol=6)  # pruned
    assert tile[180, 300].min() > 120  # greatest value
    views.heat_address(preview, (799, 399, 800, 400), values, (400, 800))  # below a pixel of the tile


def test_the_value_of_a_patch_is_json():
    preview = np.zeros((40, 60, 3), np.uint8)
    labels = np.zeros((80, 120), np.uint8)
    labels[:, 60:] = 1
    why = SimpleNamespace(
        window=(0, 0, 80, 80),
        patch=(3, 4),
        grid=(8, 8),
        maps={'attention': np.eye(8), 'pruned': np.where(np.eye(8), 1.0, -np.inf)},
        words=[(HTML, 1, np.float32(0.25), np.float32(0.5))],
        without=np.zeros_like(labels),
        labels=labels,
    )
    picture = views.picture_entry(preview, labels.shape, HTML)
    colors = views.shown_colors(2, [])
    value = views.why_value(why, picture, preview, ['sky', HTML], colors, title='SCLIP + FSA', x=np.int64(45), y=35)
    assert json.loads(json.dumps(value)) == value
    assert value['changed'] == 0.5
    assert value['tiles'][1]['caption'] == '1 to 1, 12 % of patches kept'
    assert value['words'] == [{'word': HTML, 'color': value['classes'][1]['color'], 'without': 0.25, 'with': 0.5}]
    assert classes_of(value['rows'][1]['labels']).max() == 1
    assert (picture['width'], picture['height'], picture['name']) == (120, 80, HTML)


def test_views_have_their_events_and_no_code_in_templates():
    """gradio evaluates braces, `$` and backticks in HTML and CSS; scripts never write markup."""
    picture, stage, why = views.picture_view(), views.stage_view(elem_id='stage'), views.why_view()
    assert callable(picture.opened) and callable(stage.pixel) and callable(why.pixel)
    assert stage.elem_id == 'stage'
    for view in (picture, stage, why):
        assert not re.search(r'\{\{|\$\{|`|\\', view.html_template + view.css_template)
        assert not re.search('innerHTML|outerHTML|insertAdjacentHTML|document.write', view.js_on_load)
        assert 'http' not in view.html_template + view.css_template + view.js_on_load
    assert {each.name for each in (files('fsa_seg.apps.demo') / 'view').iterdir()} == {
        f'{name}.{kind}' for name in ('picture', 'stage', 'why') for kind in ('html', 'css', 'js')
    } | {'common.css', 'common.js'}
