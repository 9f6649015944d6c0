"""What the server holds of each page: questions within the limits, pictures that make room, and turns at the model."""

import threading
from types import SimpleNamespace

import pytest

from fsa_seg.apps.demo import pages as limits
from fsa_seg.apps.demo.pages import Pages, read_question
from fsa_seg.errors import Busy, UserError

PICTURE = SimpleNamespace(name='a.png', size=(3, 4))


def test_a_question_has_the_background_first():
    question = read_question(['cat; kitten', ' ; ', 'a cow'], 'sky; ;wall', prob_thd=0.3)
    assert question.classes == ('sky; wall', 'cat; kitten', 'a cow') and question.background
    assert question.shown == ['background; sky; wall', 'cat; kitten', 'a cow'] and question.prob_thd == 0.3
    assert read_question(['cat', '\n;\u00a0'], ' ; ').classes == ('cat',) and not read_question(['cat']).background


@pytest.mark.parametrize(
    'words, background, rows, text',
    [
        ([], '', 0, 'there is no word: type at least one'),
        (None, 'sky', 0, 'there is no word'),
        (['w' + '; w' * limits.MAX_CLASSES], '', 0, 'there are 1001 words, synonyms counted; the page takes 1000'),
        (['w' * 6000, 'v' * 4001], '', 0, 'the words have 10001 characters together; the page takes 10000'),
        (['cat'], '', 9, '9 rows are chosen; the page shows 8'),
    ],
)
def test_questions_beyond_the_limits(words, background, rows, text):
    with pytest.raises(UserError, match=text):
        read_question(words, background, [None] * rows)


def test_five_hundred_words_are_a_question():
    assert len(read_question([f'word {i}' for i in range(500)]).classes) == 500


def test_the_page_used_last_keeps_its_picture():
    pages = Pages()
    opened = [pages.open(f's{i}') for i in range(limits.MAX_PAGES + 1)]
    for page in opened[:-1]:
        pages.hold(page, PICTURE)
    pages.of_session('s0')  # used again, so that the second page makes room
    pages.hold(opened[-1], PICTURE)
    assert [page.picture is None for page in opened] == [i == 1 for i in range(len(opened))]
    with pytest.raises(UserError, match='the picture of this page is gone'):
        opened[1].opened()
    pages.hold(opened[1], PICTURE)
    assert opened[1].opened() is PICTURE and opened[2].picture is None


def test_pages_used_last_keep_what_passes_left():
    pages, released = Pages(), []
    for i in range(limits.MAX_KEPT + 2):
        pages.hold(pages.open(f's{i}'), SimpleNamespace(release=lambda i=i: released.append(i)))
    pages.of_session('s0')
    with pages.turn():
        pass
    assert released == [1, 2]


def test_no_page_without_a_session():
    pages = Pages()
    for ask in (pages.open, pages.of_session):
        with pytest.raises(UserError):
            ask(None)


def test_a_closed_page_is_gone():
    pages = Pages()
    page = pages.open('a')
    pages.hold(page, PICTURE)
    assert pages.of_token(page.token) is page and pages.of_token('x') is None and pages.of_token('ä') is None
    pages.close('a')
    pages.close('a')
    assert page.picture is None and pages.of_token(page.token) is None
    with pytest.raises(UserError, match='load the page again'):
        pages.of_session('a')
    for i in range(limits.MAX_OPEN + 5):
        pages.open(str(i))
    assert len(pages) == limits.MAX_OPEN


def test_results_of_an_earlier_picture_are_not_kept():
    page, question = Pages().open('a'), read_question(['cat'])
    page.clear(PICTURE)
    page.answer(PICTURE, question, (), [b'labels'])
    assert page.question is question and page.labels == [b'labels']
    page.clear(SimpleNamespace(name='b.png', size=(3, 4)))
    page.answer(PICTURE, question, (), [b'labels'])
    assert page.question is None and page.labels == []


def test_one_request_at_a_time_and_a_limit_of_those_that_wait():
    pages, working, done, most = Pages(), threading.Event(), threading.Event(), []

    def work(first):
        with pages.turn():
            most.append(1)
            if first:
                working.set()
                done.wait(10)
            assert len(most) == 1
            most.clear()

    threads = [threading.Thread(target=work, args=(i == 0,)) for i in range(limits.MAX_WAITING + 1)]
    threads[0].start()
    assert working.wait(10)
    for thread in threads[1:]:
        thread.start()
    while pages.waiting < limits.MAX_WAITING:
        pass
    with pytest.raises(Busy, match='8 requests wait already'), pages.turn():
        raise AssertionError('no turn is left')
    done.set()
    for thread in threads:
        thread.join(10)
    with pages.turn():
        assert pages.waiting == 0


def test_a_line_for_an_error_and_no_values_on_the_console(capsys):
    try:
        raise KeyError('a word of the user')
    except KeyError as error:
        line = limits.unexpected(error)
    assert 'a word of the user' in line
    out = capsys.readouterr().out
    assert 'test_pages.py' in out and 'KeyError' in out and 'a word' not in out.replace("raise KeyError('a word of", '')
