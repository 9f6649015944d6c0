"""The page in a real browser, headless Chromium: what a user does, at two widths, and two users at once."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('gradio', reason="the page needs gradio: pip install 'fsa-seg[demo]'")
sync_api = pytest.importorskip('playwright.sync_api', reason='the page is driven by Playwright: pip install playwright')

from fsa_seg.apps.demo import server  # noqa: E402
from fsa_seg.apps.demo.comparison import Comparison  # noqa: E402
from fsa_seg.apps.demo.results import ResultsFolder  # noqa: E402
from fsa_seg.apps.evaluate import evaluate  # noqa: E402
from fsa_seg.apps.segmenter import Segmenter  # noqa: E402
from fsa_seg.cli.segment import main as segment_tool  # noqa: E402

from conftest import MINI  # noqa: E402

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium (Debian: apt-get install chromium)')
CAT = f'{MINI}/VOCdevkit/VOC2012/JPEGImages/2007_000227.jpg'
OTHER = f'{MINI}/VOCdevkit/VOC2010/JPEGImages/2008_000251.jpg'
WIDTHS = (1280, 390)
PATIENCE = 20_000  # milliseconds that an answer may take on a busy machine


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """A running page: its address, and its `Pages`. Its tab of results has a pair on two images."""
    folder = str(tmp_path_factory.mktemp('ran'))
    evaluate('voc20', 'sclip', [False, True], mini=True, limit=2, protocol='sclip', work_dir=folder, save_labels=True)
    app = server.make_app(Comparison('toy', 'toy', 'proxyclip'), ResultsFolder([folder]))
    with server.Server(app, server.bind('127.0.0.1', 0)) as running:
        yield running.url, app.state.pages


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield running
        running.close()


@contextlib.contextmanager
def opened(browser, url, width=1280, **options):
    """Open the page as a user of its own; a fault of its script, or a request of another server, fails the test."""
    context = browser.new_context(viewport=dict(width=width, height=900), accept_downloads=True, **options)
    page, faults = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on('pageerror', lambda error: faults.append(str(error)))
    page.on('request', lambda request: request.url.startswith((url, 'data:', 'blob:')) or faults.append(request.url))
    try:
        page.goto(url)
        page.locator('#picture .thumbs img').first.wait_for()
        yield page
        assert not faults
    finally:
        context.close()


def upload(page, path, content=None):
    """Give the page a file, and wait for the picture or the line of an error."""
    file = path if content is None else dict(name=path, mimeType='image/jpeg', buffer=content)
    page.locator('#picture input[type=file]').set_input_files(file)
    page.locator('#picture .busy').wait_for(state='hidden')


def clear(page, field):
    """Remove all chips of a field."""
    if page.locator(f'{field} .token').count():
        page.locator(f'{field} .remove-all').click()


def say(page, words, background=''):
    """Replace the chips of words, and the background words."""
    clear(page, '#words')
    box = page.locator('#words input')
    for word in words:
        box.fill(word)
        box.press('Enter')
    box.press('Escape')
    page.locator('#background textarea, #background input').first.fill(background)


def choose(page, rows):
    """Choose the rows of the comparison."""
    clear(page, '#rows')
    box = page.locator('#rows input')
    for row in rows:
        box.fill(row)
        page.get_by_role('option', name=row, exact=True).click()
    box.press('Escape')


def segment(page):
    """Press the button, and wait for the answer: the titles of the rows."""
    page.evaluate("document.querySelector('#stage .rows').replaceChildren()")
    page.click('button#segment')
    page.locator('#stage figure canvas').first.wait_for()
    return page.locator('#stage figure h3').all_inner_texts()


def download(page, link):
    """Return the content of a link's file."""
    with page.expect_download() as waiting:
        link.click()
    with open(waiting.value.path(), 'rb') as f:
        return f.read()


def labels_of(content):
    return np.array(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize('width', WIDTHS)
def test_a_user_compares_and_asks_why(served, browser, width, tmp_path, monkeypatch):
    """Upload, words, rows, downloads, show and hide, slider, click, FSA's sliders; the answers are `Segmenter`'s."""
    url, _ = served
    classes = ['sky; wall', 'cat; kitten', 'wood', 'cow <img src=x onerror=alert(1)>']
    with opened(browser, url, width) as page:
        upload(page, CAT)
        say(page, classes[1:], background=classes[0])
        choose(page, ['SCLIP', 'SCLIP + FSA', 'ProxyCLIP + FSA'])
        assert segment(page) == ['SCLIP', 'SCLIP + FSA', 'ProxyCLIP + FSA']
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        legend = page.locator('#stage .legend').inner_text()
        assert 'background' in legend and 'sky' not in legend
        assert page.locator('#stage img[src=x]').count() == 0

        figures = page.locator('#stage figure')
        files, commands = [], []
        for i, (method, fed) in enumerate([('sclip', False), ('sclip', True), ('proxyclip', True)]):
            expected = Segmenter('toy', method, fed, 'toy', 'proxyclip').segment(CAT, classes, scores=True)
            content = download(page, figures.nth(i).get_by_role('link', name='PNG'))
            assert np.array_equal(labels_of(content), expected.labels)
            shares = figures.nth(i).locator('.shares .value').all_inner_texts()
            counts = np.sort(np.bincount(expected.labels.ravel(), minlength=len(classes)))[::-1] / expected.labels.size
            assert sum(float(share.rstrip(' %')) for share in shares) == pytest.approx(100, abs=0.5)
            assert float(max(shares, key=lambda text: float(text.rstrip(' %'))).rstrip(' %')) == pytest.approx(
                100 * counts[0], abs=0.06
            )
            files.append((content, expected))
            figures.nth(i).get_by_role('button', name='Command').click()
            commands.append(page.locator('#stage .line code').inner_text())
        scores = np.load(io.BytesIO(download(page, figures.nth(2).get_by_role('link', name='NPZ'))))
        np.testing.assert_allclose(scores['scores'], files[2][1].scores, atol=1e-6)

        if width == WIDTHS[0]:  # the command gives the same
            monkeypatch.chdir(tmp_path)
            shutil.copy(CAT, tmp_path / '2007_000227.jpg')
            segment_tool(shlex.split(commands[1])[2:])
            assert (tmp_path / 'labels.png').read_bytes() == files[1][0]

        before = drawn(figures.nth(0))
        page.locator('#stage .legend .chip').first.click()
        wait_until(lambda: drawn(figures.nth(0)) != before)
        page.locator('#stage .legend').get_by_text('Show all').click()
        wait_until(lambda: drawn(figures.nth(0)) == before)
        page.locator('#stage .opacity input').fill('0')
        wait_until(lambda: drawn(figures.nth(0)) == drawn(figures.nth(2)) != before)
        page.locator('#stage .opacity input').fill('65')

        page.locator('#stage').get_by_role('button', name='Slider').click()
        page.locator('#stage select').nth(1).select_option(index=2)
        divider = page.locator('#stage .pair [role=slider], #stage .pair input[type=range]')
        divider.focus()
        start = divider.get_attribute('aria-valuenow') or divider.input_value()
        divider.press('ArrowLeft')
        assert (divider.get_attribute('aria-valuenow') or divider.input_value()) != start
        page.locator('#stage').get_by_role('button', name='Side by side').click()

        click(page.locator('#stage figure canvas').nth(1), 0.25, 0.2)
        page.locator('#why .tiles img').first.wait_for()
        titles = page.locator('#why .tiles strong').all_inner_texts()
        assert titles == ['A attention', 'S similarity', 'S pruned', 'W adapted', 'Â ensemble']
        heading = page.locator('#why h3').first.inner_text()
        words = page.locator('#why .words ol').inner_text()
        assert heading.startswith('SCLIP') and 'wall' in words and '<img src=x' in words
        page.locator('#lam input[type=number]').fill('9')
        page.locator('#lam input[type=number]').press('Enter')
        sync_api.expect(page.locator('#why .line')).to_contain_text('lam=9')
        assert page.locator('#why .words ol').inner_text() != words
        assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_of_many_quick_clicks_the_last_one_counts(served, browser):
    url, pages = served
    with opened(browser, url) as page:
        upload(page, CAT)
        segment(page)
        canvas = page.locator('#stage figure canvas').first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for share in (0.1, 0.3, 0.6):
            page.mouse.click(box['x'] + share * box['width'], box['y'] + share * box['height'])
        page.locator('#why .tiles img').first.wait_for()
        of_page = pages.of_session(next(reversed(pages._pages)))
        wait_until(lambda: of_page.pixel[0] == pytest.approx(0.6 * of_page.picture.size[1], abs=2))


def drawn(figure):
    """Return what a figure's canvas shows."""
    return figure.locator('canvas').evaluate('canvas => canvas.toDataURL()')


def wait_until(condition):
    """Wait for a condition: a canvas is drawn with the browser's next frame, and a closed connection is seen later."""
    for _ in range(100):
        if condition():
            return
        time.sleep(0.1)
    assert condition()


def click(canvas, x, y):
    """Click at a share of a canvas's width and height."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position=dict(x=x * box['width'], y=y * box['height']))


def test_two_users_see_their_own(served, browser):
    """Pictures, words and answers of two pages, in turns; a page that closes leaves nothing."""
    url, pages = served
    with opened(browser, url) as first, opened(browser, url) as second:
        upload(first, CAT)
        upload(second, OTHER)
        say(first, ['cat; kitten', 'wood'])
        say(second, ['snow', 'grass', 'floor'])
        for page in (first, second):
            choose(page, ['SCLIP', 'MaskCLIP'])
            page.click('button#segment')
        for page, path, words in ((first, CAT, ['cat; kitten', 'wood']), (second, OTHER, ['snow', 'grass', 'floor'])):
            page.locator('#stage figure canvas').nth(1).wait_for()
            expected = Segmenter('toy', 'sclip', False, 'toy', 'proxyclip').segment(path, words)
            found = download(page, page.locator('#stage figure').nth(0).get_by_role('link', name='PNG'))
            assert np.array_equal(labels_of(found), expected.labels)
        texts = [page.locator('body').inner_text() for page in (first, second)]
        assert '2007_000227' in texts[0] and '2007_000227' not in texts[1]
        assert 'snow' in texts[1] and 'snow' not in texts[0]
        assert len(pages) == 2
    wait_until(lambda: len(pages) == 0)


@pytest.mark.parametrize('width', WIDTHS)
def test_a_user_looks_at_results(served, browser, width):
    """A cell, its images by gain, truth and both rows with their IoU."""
    with opened(browser, served[0], width) as page:
        page.get_by_role('tab', name='Results').click()
        page.locator('#cell input').click()
        page.get_by_role('option').first.click()
        figures = page.locator('#shown figure')
        sync_api.expect(figures).to_have_count(3)
        assert figures.locator('h3').all_inner_texts() == ['Truth', 'SCLIP', 'SCLIP + FSA']
        assert 'saved labels' in figures.nth(2).inner_text() and 'mIoU' in figures.nth(1).inner_text()
        images = [page.locator('#image input').input_value()]
        page.click('button#next')
        sync_api.expect(page.locator('#image input')).not_to_have_value(images[0])
        images.append(page.locator('#image input').input_value())
        gains = [float(image.split()[0]) for image in images]
        assert gains == sorted(gains, reverse=True)
        assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_bad_input_is_a_line_and_the_page_works_on(served, browser, tmp_path):
    url, _ = served
    with opened(browser, url) as page:
        page.click('button#segment')
        error = page.locator('#stage .error')
        sync_api.expect(error).to_contain_text('picture')
        for name, content in (('text.jpg', b'no picture'), ('empty.jpg', b'')):
            upload(page, name, content)
            sync_api.expect(page.locator('#picture .error')).to_contain_text(name)
        upload(page, CAT)
        sync_api.expect(page.locator('#picture .error')).to_be_hidden()
        for words, line in (([], 'word'), (['cat', 'Cat'], 'one text to CLIP'), (['x' * 10_001], 'characters')):
            say(page, words)
            page.click('button#segment')
            sync_api.expect(error).to_contain_text(line)
        say(page, ['cat; kitten', 'wood'])
        assert segment(page)
        assert page.locator('#stage .error').is_hidden()


@pytest.mark.slow
def test_memory_does_not_grow(browser):
    """The command's process after 200 pictures, each segmented and asked why, and after 20; SIGTERM ends it."""
    command = [sys.executable, '-m', 'fsa_seg', 'demo', '--mini', '--port', '0']
    variables = dict(os.environ, PYTHONUNBUFFERED='1', OMP_NUM_THREADS='1')
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)
    try:
        url = next(re.search(r'http://\S+', line).group() for line in process.stdout if 'http://' in line)
        taken = {}
        with opened(browser, url) as page:
            for count in range(1, 201):
                page.locator('#picture .thumbs button').nth(count % 6).click()
                page.wait_for_function("document.querySelectorAll('#stage figure').length < 2")
                segment(page)
                click(page.locator('#stage figure canvas').nth(1), 0.3, 0.3)
                page.locator('#why .tiles img').first.wait_for()
                with open(f'/proc/{process.pid}/statm', encoding='ascii') as f:
                    taken[count] = int(f.read().split()[1])
        assert taken[200] == pytest.approx(taken[20], rel=0.05)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
