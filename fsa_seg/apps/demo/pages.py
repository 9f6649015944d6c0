"""What the server holds of each open page, and its limits. All of it is in memory, and gone with the page."""

import contextlib
import secrets
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fsa_seg.errors import Busy, UserError, one_line

if TYPE_CHECKING:
    from fsa_seg.apps.demo.comparison import OpenPicture, Row

MAX_FILE = 64 * 2**20  # bytes of an upload: a photograph of 100 megapixels as JPEG, or of 20 as PNG
MAX_PAGES = 16  # pages with a picture: the file is in memory
MAX_KEPT = 4  # pages used last for whose pictures trunk and features stay: 36 MiB a window under ProxyCLIP at ViT-B/16
MAX_OPEN = 256  # pages at all: a page without a picture takes a few kilobytes
MAX_ROWS = 8  # rows side by side: a page shows no more, and each row is a pass of the last block
MAX_CLASSES = 1000  # words, synonyms counted: the scores of a picture take 4 bytes per word and pixel
MAX_CHARACTERS = 10_000  # of all words together: the legend of a page shows no more
MAX_WAITING = 8  # requests that wait for the model: at some seconds each, more would wait for minutes
MAX_SCORES = 2**29  # bytes of scores that a download takes: they are in memory twice

GONE = (
    f'the picture of this page is gone: the server holds the pictures of the {MAX_PAGES} pages used last; open the '
    'picture again'
)


class Question(NamedTuple):
    """What a page asks of its picture.

    Attributes:
        classes: a text for each class, synonyms separated by ';'; a background class comes first.
        rows: method × feedback, see `fsa_seg.apps.demo.comparison.Row`.
        prob_thd: a pixel with a lower score gets the first class.
        background: whether the first class is the background.
    """

    classes: tuple[str, ...]
    rows: tuple['Row', ...] = ()
    prob_thd: float = 0.0
    background: bool = False

    @property
    def shown(self) -> list[str]:
        """Return the classes' texts as the page shows them: a background class has the name 'background'."""
        first, *others = self.classes
        return [f'background; {first}' if self.background else first, *others]


def read_question(
    words: Sequence[str], background: str = '', rows: Sequence['Row'] = (), prob_thd: float = 0.0
) -> Question:
    """Return the question of a page's controls.

    Args:
        words: a text for each class, synonyms separated by ';'.
        background: the words of the background class, separated by ';'; without a word there is no such class.
        rows: the rows to compare.
        prob_thd: the threshold.

    Raises:
        UserError: no word, or more words, characters or rows than the limits allow.
    """
    first = '; '.join(part.strip() for part in (background or '').split(';') if part.strip())
    classes = (*[first] * bool(first), *(text for text in words or () if any(map(str.strip, text.split(';')))))
    if len(classes) == bool(first):
        raise UserError('there is no word: type at least one, such as: cat; kitten')
    count, characters = sum(text.count(';') + 1 for text in classes), sum(map(len, classes))
    if count > MAX_CLASSES:
        raise UserError(f'there are {count} words, synonyms counted; the page takes {MAX_CLASSES} at most')
    if characters > MAX_CHARACTERS:
        raise UserError(f'the words have {characters} characters together; the page takes {MAX_CHARACTERS} at most')
    if len(rows) > MAX_ROWS:
        raise UserError(f'{len(rows)} rows are chosen; the page shows {MAX_ROWS} at most')
    return Question(classes, tuple(rows), float(prob_thd or 0), bool(first))


class Page:
    """One load of the page in a browser.

    Attributes:
        token (str): secret name of the page in the addresses of its routes.
        picture (OpenPicture or None): the open picture.
        question (Question or None): of the results that the page shows.
        colors (sequence): RGB colour of each class of these results.
        labels (list of bytes): these results, a PNG for each row.
        pixel (tuple or None): x and y of the pixel that 'why' is about.
        method (str or None): of the settings that 'why' shows.
        lost (bool): whether the picture has made room for those of other pages.
    """

    def __init__(self) -> None:
        self.token, self.method = secrets.token_urlsafe(24), None
        self.clear()

    def clear(self, picture: 'OpenPicture | None' = None, lost: bool = False) -> None:
        """Forget the picture and all that was made of it; keep `picture` instead."""
        self.picture, self.lost = picture, lost
        self.question: Question | None = None
        self.colors: Sequence[tuple[int, int, int]] = ()
        self.labels: list[bytes] = []
        self.pixel: tuple[int, int] | None = None

    def answer(
        self, picture: 'OpenPicture', question: Question, colors: Sequence[tuple[int, int, int]], labels: list[bytes]
    ) -> bool:
        """Keep results, and return whether they are still of the page's picture."""
        current = self.picture is picture
        if current:
            self.question, self.colors, self.labels, self.pixel = question, colors, labels, None
        return current

    def opened(self) -> Any:
        """Return the open picture; raise a UserError if there is none."""
        picture = self.picture
        if picture is None:
            raise UserError(GONE if self.lost else 'there is no picture: choose a file, or click on an example')
        return picture


class Pages:
    """The open pages of a server, and the turn at the model. Several threads may call."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, Page] = OrderedDict()  # session -> page, the least recently used first
        self._lock = threading.Lock()
        self._model = threading.Lock()
        self._requests = 0  # that wait or have their turn

    def __len__(self) -> int:
        return len(self._pages)

    def open(self, session: str | None) -> Page:
        """Return a new page for a session of gradio; the least recently used page of more than MAX_OPEN is closed.

        Raises:
            UserError: a request without a session, which another one without a session would share.
        """
        if session is None:
            raise UserError('the request has no session: open the page in a browser')
        with self._lock:
            page = self._pages[session] = Page()
            while len(self._pages) > MAX_OPEN:
                self._pages.popitem(last=False)[1].clear()
        return page

    def close(self, session: str | None) -> None:
        """Forget a session's page."""
        with self._lock:
            if page := self._pages.pop(session, None):
                page.clear()

    def of_session(self, session: str | None) -> Page:
        """Return the page of a session; raise a UserError if the page is closed."""
        with self._lock:
            if session is None or session not in self._pages:
                raise UserError('the server has closed this page; load the page again')
            self._pages.move_to_end(session)
            return self._pages[session]

    def of_token(self, token: str) -> Page | None:
        """Return the page with a token; None if no page has the token."""
        with self._lock:
            for session, page in self._pages.items():
                if secrets.compare_digest(page.token.encode(), token.encode()):
                    self._pages.move_to_end(session)
                    return page
        return None

    def hold(self, page: Page, picture: 'OpenPicture') -> None:
        """Keep a picture for a page; pages above the limits lose theirs, the least recently used first."""
        with self._lock:
            page.clear(picture)
            others = [other for other in self._pages.values() if other is not page and other.picture is not None]
            while len(others) >= MAX_PAGES:
                others.pop(0).clear(lost=True)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their turn."""
        return max(0, self._requests - 1)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the other requests' work with the model, and keep the model for the block.

        Raises:
            Busy: MAX_WAITING requests wait already.
        """
        with self._lock:
            if self._requests > MAX_WAITING:
                raise Busy(f'{MAX_WAITING} requests wait already, which is the limit; try again in a moment')
            self._requests += 1
        try:
            with self._model:
                yield
                for page in list(self._pages.values())[:-MAX_KEPT]:
                    if page.picture is not None:
                        page.picture.release()
        finally:
            with self._lock:
                self._requests -= 1


def unexpected(error: Exception) -> str:
    """Return an error that is none of the user's as one line; the console gets where it came from, without the values.

    An error's message may contain words of the user, which no log may have.
    """
    print('Traceback of an error on the page:\n' + ''.join(traceback.format_tb(error.__traceback__)), end='')
    print(type(error).__name__, flush=True)
    return f'{one_line(error)} (the console has the traceback)'


def scores_size(question: Question, picture: 'OpenPicture') -> int:
    """Return the bytes of the scores of a picture."""
    return 4 * len(question.classes) * picture.size[0] * picture.size[1]
