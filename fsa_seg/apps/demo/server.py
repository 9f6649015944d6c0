"""The server of the page: gradio at '/', the routes of pictures and downloads beside it, and what guards both.

A picture goes to a route of this file as the body of a request, and stays in memory. gradio's own uploads would be
files. Only the paths that the page needs are answered; all others are 404.
"""

import errno
import io
import ipaddress
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsa_seg.apps.demo.pages import MAX_FILE, MAX_SCORES, Page, Pages, scores_size, unexpected
from fsa_seg.apps.outputs import write_scores
from fsa_seg.errors import Busy, UserError

if TYPE_CHECKING:
    from fsa_seg.apps.demo.comparison import Comparison
    from fsa_seg.apps.demo.results import ResultsFolder

LOOPBACK = ('localhost', '127.0.0.1', '::1', '[::1]')
NEXT_PORTS = 100  # ports above a taken port that are tried for the message
LIMIT = f'the file is larger than {MAX_FILE >> 20} MiB, which is the limit; make the picture smaller'
# gradio's paths that the page needs: its scripts, its queue, and the connection whose end closes the page
NEEDED = re.compile(
    r'/|/(assets|static)/.+|/theme\.css|/config|/favicon\.ico|/manifest\.json'
    r'|/gradio_api/(queue/(join|data)|run/predict|heartbeat/\w+|startup-events|theme\.css|cancel|reset|info)/?'
    r'|/demo/.+'
)
KEPT = ('/assets/', '/static/')  # paths whose files a browser may keep
# gradio makes functions of texts in the page, and has styles in the page's elements
POLICY = '; '.join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    b'content-security-policy': POLICY.encode(),
    b'x-content-type-options': b'nosniff',
    b'x-frame-options': b'DENY',
    b'referrer-policy': b'no-referrer',
    b'cross-origin-resource-policy': b'same-origin',
}


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address, so that no other program takes the port; port 0 is any free port.

    Raises:
        UserError: the port is taken (the message names the next free one), not allowed, or the host is unknown.
    """
    if not 0 <= port <= 65535:
        raise UserError(f'--port {port}: ports are from 0 to 65535')
    try:
        return _listen(host, port)
    except socket.gaierror as error:
        raise UserError(f'--host {host}: {error.strerror}; 127.0.0.1 is this machine alone') from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            free = next((other for other in range(port + 1, port + NEXT_PORTS) if _is_free(host, other)), 0)
            raise UserError(f'port {port} is taken by another program; the next free port: --port {free}') from None
        raise UserError(f'the page cannot listen at {host}, port {port}: {error.strerror}') from None


def _listen(host, port):
    """Return a socket that listens at an address."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port stays taken for a minute
        listener.bind(address)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_free(host, port):
    """Return whether a port can be listened at."""
    try:
        _listen(host, port).close()
    except (OSError, OverflowError):
        return False
    return True


def address(listener: socket.socket) -> str:
    """Return the page's address for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
    return f'http://{f"[{host}]" if ":" in host else host}:{port}/'


class Server:
    """Runs an application in a thread of its own, so that the main thread keeps the signals.

    >>> with Server(app, bind('127.0.0.1', 0)) as server: urlopen(server.url)     # doctest: +SKIP

    Args:
        app: see `make_app`.
        listener: see `bind`; the server closes it.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket):
        self.url, self._listener = address(listener), listener
        config = uvicorn.Config(
            app,
            log_level='warning',
            access_log=False,  # a request's address may have a picture's name
            ws='none',
            server_header=False,
            timeout_graceful_shutdown=1,  # an open page keeps a connection
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True, name='server')

    def __enter__(self) -> 'Server':
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise UserError('the server of the page has ended; its error is above')
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger('uvicorn.error').setLevel(logging.CRITICAL)  # of the connections that the end cuts
        self._server.should_exit = True
        self._thread.join(5)
        self._listener.close()


class Guard:
    """Middleware: only needed paths, no request from another site's page, and the headers of security.

    Another site could give its own name the address of this machine, and read the page's answers: the name is refused.

    Args:
        app: the application behind.
        names: host names under which the page answers; it answers under every IP address.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]):
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:

        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        headers = dict(scope['headers'])

        async def guarded(message: Message) -> None:
            if message['type'] == 'http.response.start':
                own = dict(HEADERS) if scope['path'].startswith(KEPT) else {**HEADERS, b'cache-control': b'no-store'}
                others = [pair for pair in message.get('headers', ()) if pair[0].lower() not in own]
                message = {**message, 'headers': [*others, *own.items()]}
            await send(message)

        if not self._is_own(headers.get(b'host', b'').decode('latin-1')):
            return await PlainTextResponse('Unknown host name', 400)(scope, receive, guarded)
        if not NEEDED.fullmatch(scope['path']):
            return await PlainTextResponse('Not Found', 404)(scope, receive, guarded)
        origin = headers.get(b'origin')
        if origin is not None and urlsplit(origin.decode('latin-1')).netloc != headers.get(b'host', b'').decode(
            'latin-1'
        ):
            return await PlainTextResponse('Requests of other sites are refused', 403)(scope, receive, guarded)
        await self.app(scope, receive, guarded)

    def _is_own(self, host):
        """Return whether the page answers under a request's host."""
        name = host.lower().rpartition(':')[0] if re.search(r':\d*$', host) and not _is_address(host) else host.lower()
        return name in self.names or _is_address(name)


def _is_address(host):
    """Return whether a host is an IP address."""
    try:
        return bool(ipaddress.ip_address(host.strip('[]')))
    except ValueError:
        return False


def make_app(
    engine: 'Comparison', results: 'ResultsFolder | None' = None, note: str | None = None, names: Sequence[str] = ()
) -> FastAPI:
    """Return the application: gradio's page, the routes beside it, and the guards.

    `app.state.pages` are its `Pages`.

    Args:
        engine: an `fsa_seg.apps.demo.comparison.Comparison`.
        results: what the tab of results shows; None for a page without the tab.
        note: a line on top of the page.
        names: host names, beside localhost and any IP address, under which the page answers.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1', GRADIO_ANALYTICS_MAX_EVENTS='1')
    from fsa_seg.apps.demo.blocks import find_examples, mount

    pages, examples = Pages(), find_examples()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.pages = pages
    Routes(engine, pages, examples).add_to(app)
    mount(app, engine, pages, examples, results, note)
    app.add_middleware(Guard, names=('localhost', *names))
    return app


class Routes:
    """The routes of pictures and downloads. Their addresses have the page's token, so that no other page has them.

    Args:
        engine, pages, examples: see `make_app`.
    """

    def __init__(self, engine: Any, pages: Pages, examples: Sequence[Any]):
        self.engine, self.pages, self.examples = engine, pages, examples

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        for path, method, route in (
            ('picture', 'POST', self.picture),
            ('example/{index}', 'POST', self.example),
            ('labels/{row}.png', 'GET', self.labels),
            ('scores/{row}.npz', 'GET', self.scores),
        ):
            app.router.add_route(f'/demo/{{token}}/{path}', self._for_page(route), methods=[method])

    def _for_page(self, route):
        """Return a route as a function of the request; an unknown page is 404, and an error becomes a line."""

        async def answer(request):
            page = self.pages.of_token(request.path_params['token'])
            if page is None:
                return _failed('the server has closed this page; load the page again', 404)
            try:
                return await route(page, request)
            except Busy as error:
                return _failed(str(error), 503)
            except UserError as error:
                return JSONResponse(dict(error=str(error)))
            except ClientDisconnect:
                return _failed('the upload was broken off', 400)
            except Exception as error:
                return _failed(unexpected(error), 500)

        return answer

    async def picture(self, page: Page, request: Request) -> Any:
        """Open the picture in the request's body."""
        data = await read_body(request)
        if data is None:
            return _failed(LIMIT, 413)
        name = os.path.basename(request.query_params.get('name', '')) or 'picture'
        if not data:
            raise UserError(f'{name} is empty: it has 0 bytes')
        return await run_sync(self._open, page, data, name)

    async def example(self, page: Page, request: Request) -> Any:
        """Open an example; the answer has its words."""
        index = request.path_params['index']
        if not (index.isdecimal() and int(index) < len(self.examples)):
            return _failed(f'there is no example {index}', 404)
        example = self.examples[int(index)]
        return await run_sync(self._open, page, example.path, os.path.basename(example.path), list(example.words))

    def _open(self, page, source, name, words=None):
        """Return the answer about a picture that the page keeps from now on."""

        from fsa_seg.apps.demo.blocks import entry

        with self.pages.turn():
            picture = self.engine.open(source, name)
            self.pages.hold(page, picture)
        value = dict(picture=entry(picture))
        return JSONResponse(value if words is None else dict(value, words=words))

    async def labels(self, page: Page, request: Request) -> Any:
        """Return a row's labels as a PNG with a palette."""
        row = _row(page, request)
        if row is None:
            return _failed('this page has no such result', 404)
        return _attachment(page.labels[row], 'image/png', f'{_stem(page, row)}.png')

    async def scores(self, page: Page, request: Request) -> Any:
        """Return a row's scores, computed now, see `fsa_seg.apps.outputs.write_scores`."""
        row = _row(page, request)
        if row is None:
            return _failed('this page has no such result', 404)
        name = f'{_stem(page, row)}.npz'
        return _attachment(await run_sync(self._scores, page, row), 'application/octet-stream', name)

    def _scores(self, page, row):
        """Return the content of an NPZ file of a row's scores."""
        question, picture, content = page.question, page.opened(), io.BytesIO()
        if scores_size(question, picture) > MAX_SCORES:
            raise UserError(f'the scores take more than {MAX_SCORES >> 20} MiB; use fsa_seg.Segmenter in Python')
        with self.pages.turn():
            scores = picture.scores(list(question.classes), question.rows[row], question.prob_thd)
        write_scores(content, scores, question.classes)
        return content.getbuffer()


async def read_body(request: Request, most: int = MAX_FILE) -> bytes | None:
    """Return the body of a request; None if the body has more than `most` bytes, of which the rest is not read."""
    if int(request.headers.get('content-length', 0)) > most:
        return None
    body = bytearray()
    async for piece in request.stream():
        if len(body) + len(piece) > most:
            return None
        body += piece
    return bytes(body)


def _failed(line, status):
    """Return the answer that something failed."""

    return JSONResponse(dict(error=line), status)


def _row(page, request):
    """Return the number of the row in a request's address; None if the page has no such result."""
    row = request.path_params['row']
    return int(row) if row.isdecimal() and int(row) < len(page.labels) else None


def _stem(page, row):
    """Return the name of a row's files: the picture's name and the row's title."""
    title = re.sub(r'\W+', '_', page.question.rows[row].title.lower()).strip('_')
    return f'{os.path.splitext(page.picture.name)[0]}_{title}'


def _attachment(content, kind, name):
    """Return a file to be saved."""

    return Response(
        bytes(content), media_type=kind, headers={'content-disposition': f"attachment; filename*=UTF-8''{quote(name)}"}
    )
