import hashlib
import http.server
import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from fsa_seg.models.weights import Weights, check, get, path_of

from conftest import ROOT
from new_process import run_python

REPOSITORY = 'timm/vit_small_patch16_224.dino'


class Hub(http.server.BaseHTTPRequestHandler):
    """A server for the hub's client: one repository with one file, ranges included."""

    content, asked, cut = b'', [], False

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        if self.path != f'/{REPOSITORY}/resolve/main/model.safetensors':
            self.send_response(404)
            self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        start = 0
        if span := self.headers.get('Range'):
            start = int(span.removeprefix('bytes=').split('-')[0])
            self.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header('ETag', f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header('X-Repo-Commit', '1' * 40)
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(len(self.content) - start))
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(self.content) - 1}/{len(self.content)}')
        self.end_headers()
        if body and Hub.cut and not start:
            self.wfile.write(self.content[: 11 << 20])
            self.close_connection = True
        elif body:
            self.wfile.write(self.content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    save_file(dict(x=torch.arange(3e6)), tmp_path / 'served.safetensors')
    Hub.content, Hub.asked, Hub.cut = (tmp_path / 'served.safetensors').read_bytes(), [], False
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = dict(
        os.environ,
        HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}',
        HF_HOME=str(tmp_path / 'cache'),
        HF_HUB_DISABLE_XET='1',
        TQDM_POSITION='-1',
        NO_PROXY='127.0.0.1',
        no_proxy='127.0.0.1',
    )

    def run(*argv, **more):
        tool = os.path.join(ROOT, 'tools', 'weights.py')
        done = run_python(tool, *argv, cwd=tmp_path, env={**environment, **more})
        return done.returncode, done.stdout + done.stderr

    yield run
    server.shutdown()


def test_get_check_and_list(hub, tmp_path):
    status, printed = hub('get', 'dino_vit-s16', HF_HUB_OFFLINE='1')
    assert status == 1 and 'Either download them' in printed and 'path of a local file' in printed
    assert 'Traceback' not in printed
    status, printed = hub('get', 'dino_vit-s16')
    assert status == 0, printed
    assert '100%' in printed  # a progress bar
    status, printed = hub('check', 'dino_vit-s16', 'dino_vit-b8')
    assert status == 1 and 'vfm dino_vit-s16: whole' in printed
    assert 'vfm dino_vit-b8: absent, get it by fsa-seg weights get dino_vit-b8' in printed
    status, printed = hub('list')
    line = next(line for line in printed.splitlines() if 'dino_vit-s16' in line)
    assert line.split()[2:6] == ['12', 'MB', 'here', 'apache-2.0'], line
    absent = next(line for line in printed.splitlines() if 'openclip_vit-h14' in line)
    assert absent.split()[2:6] == ['≈3944', 'MB', '–', 'MIT'], absent
    (blob,) = (tmp_path / 'cache').rglob(hashlib.sha256(Hub.content).hexdigest())
    blob.write_bytes(Hub.content[:-8] + b'damaged!')
    status, printed = hub('check', 'dino_vit-s16')
    assert status == 1 and 'dino_vit-s16: damaged, its SHA-256 is' in printed


def test_a_broken_download_goes_on_where_it_was(hub):
    Hub.cut = True
    status, printed = hub('get', 'dino_vit-s16')
    assert status == 0, printed
    assert Hub.asked == [10 << 20]  # the client takes 10 MiB at a time
    assert 'whole' in hub('check', 'dino_vit-s16')[1]


def test_an_unknown_name(hub):
    status, printed = hub('get', 'dino_vit-b9')
    assert status == 1 and "did you mean 'dino_vit-b8'" in printed


def test_check_of_files_without_a_known_hash(tmp_path):
    save_file(dict(x=torch.zeros(9)), tmp_path / 'a.safetensors')
    torch.save(dict(x=torch.zeros(9)), tmp_path / 'vit-20240115.pth')  # a date, no hash
    for name in ('a.safetensors', 'vit-20240115.pth'):
        path = tmp_path / name
        weights = Weights('vfm', 'mine', 'MIT', str(path))
        assert check(weights) == ('readable', '')
        path.write_bytes(path.read_bytes()[:-20])
        assert check(weights)[0] == 'damaged'
    (tmp_path / 'folder').mkdir()
    folder = Weights('backbone', 'mine', 'MIT', str(tmp_path / 'folder'))
    assert check(folder)[0] == 'damaged'
    torch.save(dict(x=torch.zeros(9)), tmp_path / 'folder' / 'open_clip_pytorch_model.bin')
    assert check(folder) == ('readable', '')


def test_check_of_a_hash_in_the_url(tmp_path):
    """OpenAI's URLs have the full hash, the names of timm's downloads its head."""
    torch.save(dict(x=torch.zeros(9)), tmp_path / 'ViT.pt')
    digest = hashlib.sha256((tmp_path / 'ViT.pt').read_bytes()).hexdigest()
    right, wrong = (
        Weights('backbone', 'mine', 'MIT', f'https://models/{sha}/ViT.pt', cache_dir=str(tmp_path))
        for sha in (digest, '0' * 64)
    )
    assert check(right) == ('whole', '')
    assert check(wrong)[0] == 'damaged'


def test_a_vfm_from_a_url(tmp_path, monkeypatch):
    torch.save(dict(x=torch.zeros(9)), tmp_path / 'served.pth')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    weights = Weights('vfm', 'mine', 'MIT', f'file://{tmp_path}/served.pth')
    assert path_of(weights) is None
    assert get(weights) == path_of(weights) == str(tmp_path / 'hub' / 'checkpoints' / 'served.pth')
    assert check(weights) == ('readable', '')
