import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
import tracemalloc
import zipfile

import pytest

from fsa_seg.datasets.prepare import downloads
from fsa_seg.datasets.prepare.downloads import Download, Downloads, fetch
from fsa_seg.datasets.prepare.preparation import prepare
from fsa_seg.datasets.prepare.preparations import PREPARATIONS
from fsa_seg.errors import UserError
from fsa_seg.system import files

import sources

CONTENT = bytes(range(256)) * 20000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, in ranges if a client wants ranges.

    Attributes:
        cuts (list): bytes that the next answers send before the connection ends.
        starts (list): first byte of each request.
        busy (list): status codes of the next answers, in reverse order.
        plain (bool): ignore ranges.
    """

    cuts, starts, busy, plain = [], [], [], False

    def do_HEAD(self):
        self.send_response(200 if self.path == '/data/all.tar' else 404)
        self.send_header('Content-Length', str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        if self.busy:
            return self.send_error(self.busy.pop())
        start = int(self.headers.get('Range', 'bytes=0-')[6:-1])
        self.starts.append(start)
        if self.path != '/data/all.tar':
            return self.send_error(404)
        if start >= len(CONTENT) and not self.plain:
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(CONTENT)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        start = 0 if self.plain else start
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.cuts.pop(0) if self.cuts else None])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    Server.cuts, Server.starts, Server.busy, Server.plain = [], [], [], False
    monkeypatch.setattr(downloads, 'PAUSE', 0)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    server.handle_error = lambda *_: None  # a client that goes away
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    yield f'http://127.0.0.1:{server.server_port}/data/all.tar'
    server.shutdown()


def test_download(url, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)  # a terminal has a bar
    path = fetch(Download(url, 5, hashlib.md5(CONTENT).hexdigest()), str(tmp_path / 'new'))
    assert path == str(tmp_path / 'new' / 'all.tar') and (tmp_path / 'new' / 'all.tar').read_bytes() == CONTENT
    assert '100%' in capsys.readouterr().err and os.listdir(tmp_path / 'new') == ['all.tar']
    fetch(Download(url, 5), str(tmp_path / 'new'))
    assert Server.starts == [0]  # the present file is not fetched again


def test_a_broken_download_goes_on_where_it_was(url, tmp_path):
    Server.cuts = [10**6, 2 * 10**6]
    fetch(Download(url, 5), str(tmp_path))
    assert Server.starts == [0, 10**6, 3 * 10**6]
    assert (tmp_path / 'all.tar').read_bytes() == CONTENT


def test_a_download_that_keeps_breaking_goes_on_the_next_time(url, tmp_path):
    Server.cuts = [1000] * 5
    with pytest.raises(UserError, match='cannot be downloaded .*5000 of 5120000 bytes were received.*goes on from it'):
        fetch(Download(url, 5), str(tmp_path))
    assert (tmp_path / 'all.tar.part').stat().st_size == 5000
    fetch(Download(url, 5), str(tmp_path))
    assert Server.starts[-1] == 5000 and (tmp_path / 'all.tar').read_bytes() == CONTENT


@pytest.mark.parametrize('part, starts', [(CONTENT, [len(CONTENT)]), (CONTENT + b'more', [len(CONTENT) + 4, 0])])
def test_a_partial_file_that_is_complete_or_too_long(url, tmp_path, part, starts):
    (tmp_path / 'all.tar.part').write_bytes(part)
    fetch(Download(url, 5), str(tmp_path))
    assert Server.starts == starts and (tmp_path / 'all.tar').read_bytes() == CONTENT


def test_a_server_without_ranges(url, tmp_path):
    Server.cuts, Server.plain = [10**6], True
    fetch(Download(url, 5), str(tmp_path))
    assert (tmp_path / 'all.tar').read_bytes() == CONTENT


def test_a_wrong_md5_and_a_wrong_address(url, tmp_path):
    with pytest.raises(UserError, match='all.tar.part has the MD5 .*, and .* 000.*; remove it'):
        fetch(Download(url, 5, '0' * 32), str(tmp_path))
    os.remove(tmp_path / 'all.tar.part')
    with pytest.raises(UserError, match='is refused .*404.*download the file by hand to'):
        fetch(Download(url + '.gz', 5), str(tmp_path))
    assert not os.listdir(tmp_path)


def test_a_busy_server_gets_another_request(url, tmp_path):
    Server.busy = [503, 500]
    fetch(Download(url, 5), str(tmp_path))
    assert (tmp_path / 'all.tar').read_bytes() == CONTENT


def test_size_and_md5_of_a_present_file_are_checked(url, tmp_path):
    (tmp_path / 'all.tar').write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match='all.tar has 5119999 bytes, and .*all.tar 5120000; remove it'):
        fetch(Download(url, 5), str(tmp_path))
    (tmp_path / 'all.tar').write_bytes(CONTENT[:-1] + b'x')
    fetch(Download(url, 5), str(tmp_path))
    with pytest.raises(UserError, match='all.tar has the MD5 .*; remove it'):
        fetch(Download(url, 5, hashlib.md5(CONTENT).hexdigest()), str(tmp_path))
    assert not Server.starts
    fetch(Download('http://127.0.0.1:1/all.tar', 5), str(tmp_path))  # offline, the file is used unchecked


def test_no_server_and_no_space(tmp_path, url):
    with pytest.raises(UserError, match='cannot be downloaded'):
        fetch(Download('http://127.0.0.1:1/x.tar', 5), str(tmp_path))
    with pytest.raises(UserError, match='GB left, and all.tar has about 900000.0; make room'):
        fetch(Download(url, 9 * 10**8), str(tmp_path))
    assert not Server.starts
    os.symlink('/dev/full', tmp_path / 'all.tar.part')
    with pytest.raises(UserError, match='No space left on device.*the received part stays'):
        fetch(Download(url, 5), str(tmp_path))
    assert len(Server.starts) == 1  # a full disk is not tried again


def test_downloads_of_a_data_set(url, tmp_path, monkeypatch):
    """Files are fetched only if a file is missing."""
    monkeypatch.setitem(PREPARATIONS, 'voc', PREPARATIONS['voc']._replace(downloads=(Download(url, 5),)))
    with pytest.raises(UserError, match='lacks .*\n  not used: .*all.tar is no whole archive'):
        prepare('voc', [str(tmp_path / 'new')], str(tmp_path / 'root'), download=True)
    assert os.listdir(tmp_path / 'new') == ['all.tar'] and Server.starts == [0]
    os.remove(tmp_path / 'new' / 'all.tar')
    sources.voc(str(tmp_path / 'new'))
    prepare('voc', [str(tmp_path / 'new')], str(tmp_path / 'root'), download=True)
    assert Server.starts == [0]


def test_published_addresses_and_checksums():
    """torchvision knows the same archives of VOC and their MD5s; older versions name the earlier host."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    for name, year in (('voc', '2012'), ('context', '2010'), ('context459', '2010')):
        first = PREPARATIONS[name].downloads[0]
        known = DATASET_YEAR_DICT[year]
        assert first.md5 == known['md5'] and first.url.split('/pascal/')[1] == known['url'].split('/pascal/')[1]
    assert all(bool(preparation.downloads) != bool(preparation.by_hand) for preparation in PREPARATIONS.values())


def test_a_tree_of_folders_links_and_files(tmp_path):
    (tmp_path / 'a' / 'VOC').mkdir(parents=True)
    (tmp_path / 'a' / 'VOC' / 'x.jpg').write_bytes(b'12')
    (tmp_path / 'a' / 'VOC' / 'loop').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'broken').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'y.jpg').write_bytes(b'3')
    (tmp_path / 'a' / 'linked').symlink_to(tmp_path / 'elsewhere')
    tree = Downloads([str(tmp_path / 'a')])
    assert [file.key for file in tree.find(r'[a-z]\.jpg')] == ['x.jpg', 'y.jpg']
    assert [tree.read(file) for file in tree.find(r'VOC/x\.jpg')] == [b'12']
    (file,) = Downloads([str(tmp_path / 'a' / 'VOC' / 'x.jpg')]).find(r'VOC/[^/]+\.jpg')
    assert file.size == 2 and str(file).endswith('x.jpg')
    with pytest.raises(UserError, match='2 files could be the one: .*keep one file'):
        tree.find_single(r'[a-z]\.jpg', 'the one')


def zipped(path, method=zipfile.ZIP_DEFLATED, name='VOC/a.txt', data=bytes(5_000_000)):
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr(name, data)


def find_text(path, pattern=r'a\.txt'):
    tree = Downloads([str(path)])
    return tree, tree.find_single(pattern, 'the text')


def test_members_beyond_the_free_memory(tmp_path, monkeypatch):
    """Files of archives and folders; no byte is read."""
    zipped(tmp_path / 'a.zip')
    with tarfile.open(tmp_path / 'b.tar.gz', 'w:gz') as archive:
        info = tarfile.TarInfo('a.txt')
        info.size = 5_000_000
        archive.addfile(info, io.BytesIO(bytes(5_000_000)))
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c' / 'a.txt').write_bytes(bytes(5_000_000))
    for name in ('a.zip', 'b.tar.gz', 'c'):
        tree, file = find_text(tmp_path / name)
        monkeypatch.setattr(files, 'free_memory', lambda: 5_000_000)
        assert tree.read(file) == bytes(5_000_000)
        monkeypatch.setattr(files, 'free_memory', lambda: 4_999_999)
        tracemalloc.start()
        with pytest.raises(UserError, match='a.txt .*takes 0.0 GB of memory, and 0.0 GB are free'):
            tree.read(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_member_that_is_larger_than_it_states(tmp_path):
    """At most the stated size is read."""
    zipped(tmp_path / 'a.zip', data=bytes(50_000_000))
    content = bytearray((tmp_path / 'a.zip').read_bytes())
    for signature, offset in ((b'PK\x03\x04', 22), (b'PK\x01\x02', 24)):
        start = content.index(signature) + offset
        assert int.from_bytes(content[start : start + 4], 'little') == 50_000_000
        content[start : start + 4] = (1000).to_bytes(4, 'little')
    (tmp_path / 'a.zip').write_bytes(content)
    tree, file = find_text(tmp_path / 'a.zip')
    assert file.size == 1000
    tracemalloc.start()
    with pytest.raises(UserError, match='a.txt in .*a.zip cannot be read .*Bad CRC.*; download it again'):
        tree.read(file)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    'write, problem',
    [
        (os.mkfifo, 'the archive .*x.zip cannot be read: it is a FIFO'),
        (lambda path: os.symlink('gone', path), 'No such file'),
        (
            lambda path: zipped(path, zipfile.ZIP_BZIP2),
            "x.zip packs 'VOC/a.txt' by a method that cannot be read in parts; unpack it",
        ),
    ],
)
def test_archives_that_are_not_used(tmp_path, write, problem):
    write(tmp_path / 'x.zip')
    with pytest.raises(UserError, match=f'lacks the text\n  not used: .*{problem}'):
        find_text(tmp_path)
