"""The server of the page: bad pictures, closed paths, foreign hosts, what each event answers, ports, and the end."""

import io
import os
import signal
import socket
import threading
import zlib
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('gradio')
from starlette.testclient import TestClient  # noqa: E402

from fsa_seg.apps.demo import blocks, pages, server  # noqa: E402
from fsa_seg.apps.demo.blocks import Events, find_examples  # noqa: E402
from fsa_seg.apps.demo.comparison import Comparison  # noqa: E402
from fsa_seg.apps.segmenter import Segmenter  # noqa: E402
from fsa_seg.cli import demo  # noqa: E402
from fsa_seg.errors import UserError  # noqa: E402
from fsa_seg.models import weights  # noqa: E402

HOST = 'http://127.0.0.1:7860'


@pytest.fixture(scope='module')
def engine():
    return Comparison('toy', 'toy', 'sclip')


@pytest.fixture(scope='module')
def client(engine):
    return TestClient(server.make_app(engine), HOST, raise_server_exceptions=False)


@pytest.fixture
def page(client):
    """An open page, which has a picture of its own in no other test."""
    opened = client.app.state.pages.open('session')
    yield opened
    client.app.state.pages.close('session')


def encoded(form, array=None, mode='RGB', **options):
    """Return an image file's content."""
    content = io.BytesIO()
    image = Image.fromarray(array) if array is not None else Image.new(mode, (40, 30), 200)
    image.save(content, form, **options)
    return content.getvalue()


def bomb(side=30_000):
    """Return a PNG file of `side` pixels a side whose data ends early."""
    head = b'IHDR' + side.to_bytes(4, 'big') * 2 + bytes([8, 2, 0, 0, 0])
    data = b'IDAT' + zlib.compress(bytes(1000))
    chunks = [(len(part) - 4).to_bytes(4, 'big') + part + zlib.crc32(part).to_bytes(4, 'big') for part in (head, data)]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def turned():
    """Return a JPEG file of 40×30 that is to be turned by 90°."""
    exif = Image.Exif()
    exif[274] = 6
    return encoded('JPEG', exif=exif)


@pytest.mark.parametrize(
    'name, content, line',
    [
        ('nothing.jpg', b'', 'nothing.jpg is empty: it has 0 bytes'),
        ('text.jpg', b'a text file, renamed\n' * 50, 'the image text.jpg cannot be decoded'),
        ('huge.png', bomb(), 'huge.png has more than'),
        ('half.jpg', encoded('JPEG')[:400], 'the image half.jpg cannot be decoded'),
        ('float.tiff', encoded('TIFF', np.zeros((3, 4), np.float32)), 'float'),
        ('dark.png', encoded('PNG', np.full((3, 4), 900, np.uint16)), 'has 16 bits'),
        ('<img src=x onerror=alert(1)>.jpg', b'x', '<img src=x onerror=alert(1)>.jpg cannot be decoded'),
    ],
)
def test_a_file_that_is_no_picture_is_a_line(client, page, name, content, line):
    answer = client.post(f'/demo/{page.token}/picture', params=dict(name=name), content=content)
    assert answer.status_code == 200 and line in answer.json()['error'] and set(answer.json()) == {'error'}
    assert page.picture is None and '\n' not in answer.json()['error']


@pytest.mark.parametrize(
    'content, size',
    [
        (encoded('JPEG'), (40, 30)),
        (turned(), (30, 40)),
        (encoded('JPEG', mode='CMYK'), (40, 30)),
        (encoded('PNG', np.full((30, 40), 40_000, np.uint16)), (40, 30)),
        (encoded('PNG', np.zeros((30, 2100, 3), np.uint8)), (2100, 30)),
    ],
)
def test_pictures_of_many_kinds(client, page, content, size):
    answer = client.post(f'/demo/{page.token}/picture', params=dict(name='dir/a b.png'), content=content).json()
    assert (answer['picture']['width'], answer['picture']['height']) == size and 'words' not in answer
    assert answer['picture']['name'] == 'a b.png' and answer['picture']['url'].startswith('data:image/')
    assert max(page.picture.preview.shape) <= 1024


def test_a_file_above_the_limit(client, page, monkeypatch):
    monkeypatch.setattr(server.read_body, '__defaults__', (1000,))
    pieces = iter([b'x' * 600] * 2)  # of a length that the request does not tell
    for content in (b'x' * 1001, pieces):
        answer = client.post(f'/demo/{page.token}/picture', content=content)
        assert answer.status_code == 413 and answer.json()['error'].startswith('the file is larger than 64 MiB')
    assert client.post(f'/demo/{page.token}/picture', content=b'x' * 1000).status_code == 200


def test_examples_bring_their_words(client, page):
    assert len(find_examples()) == 6
    answer = client.post(f'/demo/{page.token}/example/2').json()
    assert answer['words'][0] == 'cat; kitten' and answer['picture']['name'] == '2007_000227.jpg'
    for index in ('6', '-1', 'x'):
        assert client.post(f'/demo/{page.token}/example/{index}').status_code == 404


def test_another_page_is_not_found(client, page):
    client.post(f'/demo/{page.token}/example/0')
    for method, path in (('post', 'picture'), ('post', 'example/0'), ('get', 'labels/0.png'), ('get', 'scores/0.npz')):
        answer = getattr(client, method)(f'/demo/{page.token[:-1]}/{path}')
        assert answer.status_code == 404 and 'load the page again' in answer.json()['error']
    for path in ('labels/0.png', 'labels/x.png', 'scores/1.npz'):  # of a page without results
        assert client.get(f'/demo/{page.token}/{path}').status_code == 404


def test_the_page_comes_with_its_guards(client):
    answer = client.get('/')
    policy = answer.headers['content-security-policy']
    assert answer.status_code == 200 and "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert 'http' not in policy and 'unsafe-inline' not in policy.split('connect-src')[1].split(';')[0]
    assert answer.headers['x-content-type-options'] == 'nosniff' and answer.headers['referrer-policy'] == 'no-referrer'
    assert answer.headers['cache-control'] == 'no-store' and 'fonts.googleapis' not in answer.text
    theme = client.get('/theme.css').text.replace('http://www.w3.org/2000/svg', '')  # a name, no address
    assert '--body-text-color' in theme and 'http' not in theme and 'system-ui' in theme
    assert blocks.gr.Blocks.get_instances() and os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'


@pytest.mark.parametrize(
    'path',
    [
        '/gradio_api/upload',
        '/gradio_api/file=/etc/passwd',
        '/gradio_api/proxy=https://example.org',
        '/gradio_api/deep_link',
        '/gradio_api/component_server',
        '/gradio_api/call/segment',
        '/gradio_api/openapi.json',
        '/gradio_api/runs',
        '/monitoring',
        '/monitoring/summary',
        '/docs',
        '/login',
    ],
)
def test_other_paths_of_gradio_are_closed(client, path):
    for method in ('get', 'post'):
        answer = getattr(client, method)(path)
        assert answer.status_code in (404, 405) and 'content-security-policy' in answer.headers, answer.text


def test_foreign_hosts_and_sites_are_refused(client, engine):
    for host in (
        'evil.example:7860',
        'evil.example',
        '127.0.0.1.evil.example',
        'localhost.evil.example:80',
        '[',
        ':',
        '',
    ):
        assert client.get('/', headers=dict(host=host)).status_code == 400, host
    for host in ('localhost:7860', 'LOCALHOST', '[::1]:7860', '::1', '192.0.2.7:80'):
        assert client.get('/theme.css', headers=dict(host=host)).status_code == 200
    assert client.get('/theme.css', headers=dict(origin='http://evil.example')).status_code == 403
    assert client.get('/theme.css', headers=dict(origin='null')).status_code == 403
    assert client.get('/theme.css', headers=dict(origin=HOST)).status_code == 200


class Requests:
    """A page's events, called as gradio calls them; the page is open until the end of the test."""

    def __init__(self, client, engine):
        self.events, self.client = Events(engine, client.app.state.pages, find_examples()), client
        self.request = SimpleNamespace(session_hash='asked')
        self.page = self.events.load(self.request)['page']

    def event(self, **data):
        return SimpleNamespace(_data=data)

    def segment(self, words=('cat; kitten', 'cow', 'wood'), background='', rows=('SCLIP', 'SCLIP + FSA'), threshold=0):
        return self.events.segment(self.request, list(words), background, list(rows), threshold)


@pytest.fixture
def asked(client, engine):
    requests = Requests(client, engine)
    yield requests
    requests.events.unload(requests.request)


def test_what_is_missing_is_a_line(asked, client):
    assert asked.segment()[0]['error'].startswith('there is no picture')
    client.post(f'/demo/{asked.page}/example/0')
    for words, rows, line in (
        ([], ['SCLIP'], 'there is no word'),
        (['cat'], [], 'no method is chosen'),
        (['cat', ' cat'], ['SCLIP'], 'cat'),
        ([' ; '], ['SCLIP'], 'there is no word'),
    ):
        stage, why = asked.segment(words, rows=rows)
        assert line in stage['error'] and stage['keep'] and why == blocks.gr.skip()
    assert 'press "Segment"' in asked.events.pixel(asked.event(row=0, x=1, y=1), asked.request, 'sclip')[1]['error']
    assert asked.events.opened(asked.event(words=['a']))[0] == ['a']
    asked.events.pages.close('asked')
    assert 'load the page again' in asked.segment()[0]['error']


def test_weights_that_are_missing_are_a_line_and_the_server_starts(monkeypatch):
    """Of a backbone that the user has named; the page shows what to run, and the sliders have their values."""
    monkeypatch.setattr(weights, 'try_to_load_from_cache', lambda *_, **__: None)
    named = Comparison('openclip_vit-h14')
    client = TestClient(server.make_app(named), HOST)
    assert client.get('/').status_code == 200
    asked = Requests(client, named)
    client.post(f'/demo/{asked.page}/example/0')
    assert asked.segment()[0]['error'].endswith('run fsa-seg weights get openclip_vit-h14')


def test_an_error_nobody_foresaw_is_a_line(asked, client, monkeypatch, capsys):
    client.post(f'/demo/{asked.page}/example/0')
    picture = asked.events.pages.of_session('asked').picture
    monkeypatch.setattr(picture, 'segment', lambda *_: 1 / 0)
    monkeypatch.setattr(asked.events.engine, 'open', lambda *_: 1 / 0)
    assert asked.segment()[0]['error'].startswith('ZeroDivisionError: division by zero')
    answer = client.post(f'/demo/{asked.page}/example/0')
    assert answer.status_code == 500 and answer.json()['error'].startswith('ZeroDivisionError')
    assert 'Traceback' in capsys.readouterr().out


def test_downloads_are_what_the_segmenter_gives(asked, client):
    client.post(f'/demo/{asked.page}/example/0')
    words, background = ['cat; kitten', 'cow', 'wood', '<b>bold</b>'], 'cloud; river'
    stage, _ = asked.segment(words, background, ('SCLIP + FSA', 'SCLIP'), 0.3)
    assert stage['error'] is None and [row['title'] for row in stage['rows']] == ['SCLIP + FSA', 'SCLIP']
    assert [entry['name'] for entry in stage['classes']] == ['background', 'cat', 'cow', 'wood', '<b>bold</b>']
    path = find_examples()[0].path
    for row, feedback in zip(stage['rows'], (True, False)):
        expected = Segmenter('toy', 'sclip', feedback, protocol='sclip').segment(
            path, [background, *words], 0.3, scores=True
        )
        answer = client.get('/' + row['png'])
        labels = Image.open(io.BytesIO(answer.content))
        assert labels.mode == 'P' and (np.asarray(labels) == expected.labels).all()
        name = 'sclip_fsa' if feedback else 'sclip'
        assert f'2008_000251_{name}.png' in answer.headers['content-disposition']
        with np.load(io.BytesIO(client.get('/' + row['npz']).content)) as kept:
            assert np.allclose(kept['scores'], expected.scores, atol=1e-5) and kept['scores'].dtype == np.float32
            assert list(kept['classes']) == [background, *words]
    assert client.get(f'/demo/{asked.page}/labels/2.png').status_code == 404


def test_scores_that_are_too_large_have_no_link(asked, client, monkeypatch):
    monkeypatch.setattr(blocks, 'MAX_SCORES', 1000)
    monkeypatch.setattr(server, 'MAX_SCORES', 1000)
    client.post(f'/demo/{asked.page}/example/0')
    assert [row['npz'] for row in asked.segment()[0]['rows']] == [None, None]
    assert 'the scores take more than' in client.get(f'/demo/{asked.page}/scores/0.npz').json()['error']


def test_why_follows_the_click_and_the_settings(asked, client):
    client.post(f'/demo/{asked.page}/example/0')
    usual = list(asked.events.engine.fsa_settings('sclip').values())
    skipped = asked.events.why(asked.request, 'sclip', *usual)
    assert blocks.gr.skip() == skipped == asked.events.again(asked.request, ['cat'], '', ['SCLIP'], 0.1)[0]
    stage, _ = asked.segment(rows=['CLIP', 'SCLIP'], threshold=0.4)
    assert 'There is no background class' in stage['note']
    method, *settings, value = asked.events.pixel(asked.event(row=1, x=30, y=40), asked.request, 'clip', *usual)
    assert method == 'sclip' and settings == usual and value['error'] is None and (value['x'], value['y']) == (30, 40)
    assert value['words'] and len(value['tiles']) == 5 and ' --attention 30,40 ' in value['command']
    other = asked.events.why(asked.request, 'sclip', 9.0, *usual[1:])
    assert other['tiles'] != value['tiles'] and 'lam=9.0' in other['command'] and (other['x'], other['y']) == (30, 40)
    assert 'terms' in asked.events.why(asked.request, 'sclip', *usual[:4], [])['error']
    *_, outside = asked.events.pixel(asked.event(x=999, y=0), asked.request, 'sclip', *usual)
    assert 'outside the image' in outside['error']


def test_a_method_brings_its_own_settings_until_a_user_changes_them(asked, client, monkeypatch):
    own = asked.events.engine.fsa_settings
    monkeypatch.setattr(asked.events.engine, 'fsa_settings', lambda name: dict(own(name), lam=4.5 - (name == 'sclip')))
    client.post(f'/demo/{asked.page}/example/0')
    asked.segment(rows=['SCLIP', 'ProxyCLIP'])
    usual = [3.5, *list(own('sclip').values())[1:]]
    _, *settings, value = asked.events.pixel(asked.event(row=1, x=30, y=40), asked.request, 'sclip', *usual)
    assert settings == [4.5, *usual[1:]] and 'lam' not in value['command']
    *settings, value = asked.events.method(asked.request, 'sclip', 9.0, *usual[1:])
    assert settings == [9.0, *usual[1:]] and 'lam=9.0' in value['command']


def test_answers_that_come_too_late_change_nothing(asked, client, monkeypatch):
    """The user opens another picture, or presses "Segment" again, while a request runs."""
    client.post(f'/demo/{asked.page}/example/0')
    page, usual = asked.events.pages.of_session('asked'), list(asked.events.engine.fsa_settings('sclip').values())
    first = page.picture
    asked.segment()
    segment, why = first.segment, first.why

    def meanwhile(answer, action):
        def late(*args):
            action()
            return answer(*args)

        return late

    click = asked.event(row=1, x=1, y=1)
    monkeypatch.setattr(first, 'why', meanwhile(why, lambda: page.clear(first)))
    assert asked.events.pixel(click, asked.request, 'sclip', *usual) == ['sclip', *usual, blocks.gr.skip()]
    monkeypatch.setattr(first, 'segment', meanwhile(segment, lambda: page.clear('another picture')))
    assert asked.segment()[0] == blocks.gr.skip() and page.question is None and page.picture == 'another picture'
    page.clear(first)
    monkeypatch.setattr(first, 'segment', meanwhile(segment, lambda: page.clear(lost=True)))
    assert 'picture of this page is gone' in asked.segment()[0]['error']
    assert 'picture of this page is gone' in asked.events.why(asked.request, 'sclip', *usual)['error']
    assert 'picture of this page is gone' in asked.events.again(asked.request, ['cat'], '', ['SCLIP'], 0.1)[0]['error']
    assert 'picture of this page is gone' in asked.events.pixel(click, asked.request, 'sclip', *usual)[-1]['error']


def test_a_click_on_a_row_that_is_gone(asked, client):
    client.post(f'/demo/{asked.page}/example/0')
    asked.segment()
    usual = list(asked.events.engine.fsa_settings('sclip').values())
    assert asked.events.pixel(asked.event(row=2, x=1, y=1), asked.request, 'clip', *usual) == [
        'clip',
        *usual,
        blocks.gr.skip(),
    ]


def test_number_boxes_are_empty_or_out_of_range_while_a_user_types():
    slider = blocks.slider(0.05, 1, 0.45)
    assert [slider.preprocess(value) for value in (None, 12, 0, 0.3)] == [0.05, 1, 0.05, 0.3]


def test_an_upload_that_is_broken_off_is_no_error_of_the_server(client, page, monkeypatch, capsys):
    async def broken(request):
        raise server.ClientDisconnect

    monkeypatch.setattr(server, 'read_body', broken)
    assert client.post(f'/demo/{page.token}/picture').status_code == 400 and not capsys.readouterr().out


def test_gradio_forgets_a_session(asked):
    calls = []
    asked.events.forget = calls.append
    asked.events.unload(asked.request)
    assert calls == ['asked'] and len(asked.events.pages) == 0


def test_a_taken_port_names_the_next_free_one():
    with server.bind('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf'port {port} is taken .* --port (\d+)') as error:
            server.bind('127.0.0.1', port)
        server.bind('127.0.0.1', int(str(error.value).split()[-1])).close()
    for host, port, text in (
        ('127.0.0.1', 70_000, 'ports are from 0 to 65535'),
        ('no.such.host.invalid', 0, 'is this machine alone'),
        ('203.0.113.7', 0, 'cannot listen at 203.0.113.7'),
    ):
        with pytest.raises(UserError, match=text):
            server.bind(host, port)


def test_addresses():
    with server.bind('0.0.0.0', 0) as listener:
        assert server.address(listener) == f'http://127.0.0.1:{listener.getsockname()[1]}/'
    if socket.has_ipv6:
        fake = SimpleNamespace(getsockname=lambda: ('::1', 7860, 0, 0))
        assert server.address(fake) == 'http://[::1]:7860/'


def test_the_tool_needs_gradio_before_anything_else(run_tool, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, 'find_spec', lambda name: None)
    status, printed = run_tool('demo', '--mini', '--port', 0)
    assert status == 1 and "fsa-seg demo needs gradio: pip install 'fsa-seg[demo]'" in printed


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_tool_serves_until_a_signal(run_tool, monkeypatch, number, capsys):
    """Without weights of the default backbone the page starts with the toy models, and says so."""
    monkeypatch.setattr('fsa_seg.models.weights.path_of', lambda weights: None)
    pages_read, before = [], signal.getsignal(number)

    class Read(server.Server):
        def __enter__(self):
            super().__enter__()
            pages_read.append(urlopen(self.url).read().decode())
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
            return self

    monkeypatch.setattr(server, 'Server', Read)
    status, printed = run_tool('demo', '--port', 0)
    assert status == 0 and 'Traceback' not in printed and signal.getsignal(number) is before
    lines = printed.splitlines()
    assert 'fsa-seg weights get clip_vit-b16 dino_vit-b8' in lines[0] and 'toy models' in lines[1]
    assert lines[-1].startswith('the page is at http://127.0.0.1:') and 'starts with the toy models' in pages_read[0]


def test_weights_that_the_user_named_are_missed_on_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr('fsa_seg.models.weights.path_of', lambda weights: None)
    args = demo.parse_args(['--backbone', 'clip_vit-l14'])
    assert not demo.lacks_weights(args) and demo.make_engine(args, False).backbone == 'clip_vit-l14'
    assert demo.lacks_weights(demo.parse_args([])) and not demo.lacks_weights(
        demo.parse_args(['--random-weights', '0'])
    )
    mixed = demo.make_engine(demo.parse_args(['--mini', '--backbone', 'clip_vit-l14']), False)
    assert (mixed.backbone, mixed.vfm) == ('clip_vit-l14', 'toy')


def test_limits_hold_for_the_page_and_the_routes():
    assert pages.MAX_FILE == server.read_body.__defaults__[0]
