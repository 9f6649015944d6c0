"""Files of weights of backbones and VFMs: find them, download them, and check whether they are whole."""

import functools
import glob
import os
import re
import zipfile
from typing import NamedTuple

import open_clip
import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError
from mmengine import ConfigDict
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained
from safetensors import safe_open
from timm.models import PretrainedCfg

from fsa_seg.errors import UserError, one_line
from fsa_seg.models.clip import loading_weights
from fsa_seg.system.files import hash_file
from fsa_seg.system.paths import local_path
from fsa_seg.system.progress import Bar

TIMM_FILES = ('model.safetensors', 'pytorch_model.bin')  # names that timm looks for in a hub's repository, in order
CLIP_FILES = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)  # names that open_clip looks for, in order
TRIES = 5  # connections for one file of the hub
STATES = ('damaged', 'readable', 'whole')  # of a file of weights, the worst first


class Weights(NamedTuple):
    """The source of a component's weights.

    Attributes:
        kind: of the component, 'backbone' or 'vfm'.
        name: of the component.
        licence: of the weights.
        source: a repository of the hub, a URL, or a local path.
        files: names to look for in the repository, in order; empty for a URL or a path.
        tag: `open_clip`'s description of the weights' tag; None for weights without a tag.
        cache_dir: folder of downloads; None for the library's folder.
    """

    kind: str
    name: str
    licence: str
    source: str
    files: tuple[str, ...] = ()
    tag: dict | None = None
    cache_dir: str | None = None


def weights_from(kind: str, component: ConfigDict) -> Weights:
    """Return the `Weights` of a loaded component, or of the model's config that was made of the component.

    Args:
        kind: 'backbone' or 'vfm'.
        component: a dict such as a file of configs/backbones/ holds.
    """
    name, licence = component.get('name', component.get('model')), component.get('licence', '–')
    model = component.get('model', '')
    local = component.get('checkpoint') or (model[10:] if model.startswith('local-dir:') else None)
    if local or not (kind == 'backbone' or timm.is_model(model)):  # a user's class
        return Weights(kind, name, licence, local or component.type)
    if kind == 'backbone':
        tag = open_clip.get_pretrained_cfg(component.model, component.get('pretrained') or '')
        if not tag:
            raise UserError(
                f'backbone {name}: open_clip has no weights {component.get("pretrained")!r} of {component.model}'
            )
        repository, file = os.path.split(tag.get('hf_hub') or '')
        files = ((file,) if file else CLIP_FILES) if repository else ()
        return Weights(kind, name, licence, repository or tag['url'], files, tag, component.get('cache_dir'))
    cfg = timm_tag(component.model)
    if not cfg or not (cfg.hf_hub_id or cfg.url):
        raise UserError(f'VFM {name}: timm has no weights for {component.model}')
    files = ((cfg.hf_hub_filename,) if cfg.hf_hub_filename else TIMM_FILES) if cfg.hf_hub_id else ()
    return Weights(kind, name, cfg.license or licence, cfg.hf_hub_id or cfg.url, files)


@functools.lru_cache(256)
def timm_tag(model: str) -> PretrainedCfg | None:
    """Return `timm`'s description of a model's weights, which it copies at each call; not to be changed."""
    return timm.get_pretrained_cfg(model, allow_unregistered=False)


def path_of(weights: Weights) -> str | None:
    """Return the local file or folder of weights; None if the weights are absent."""
    for file in weights.files:
        path = try_to_load_from_cache(weights.source, file, cache_dir=weights.cache_dir)
        if isinstance(path, str):
            return path
    if weights.files:
        return None
    if '://' in weights.source:
        path = _url_target(weights)
        return path if os.path.exists(path) else None
    try:
        return local_path(weights.source, 'weights')
    except UserError:
        return None


def get(weights: Weights) -> str:
    """Download absent weights, and return their path.

    The libraries' clients download, with their progress bars, caches, offline switches and resumed downloads.

    Raises:
        UserError: the download fails; the message names the two ways to supply the weights.
    """
    path = path_of(weights)
    if path:
        return path
    with loading_weights(f'{weights.kind} {weights.name!r}', weights.source, weights.cache_dir):
        for file in weights.files:
            try:
                return _from_hub(weights, file)
            except EntryNotFoundError:
                if file == weights.files[-1]:
                    raise
        if weights.kind == 'backbone' and '://' in weights.source:
            return download_pretrained(weights.tag, cache_dir=weights.cache_dir)
        if '://' in weights.source:
            os.makedirs(os.path.dirname(_url_target(weights)), exist_ok=True)
            torch.hub.download_url_to_file(weights.source, _url_target(weights))
            return _url_target(weights)
        raise UserError(f'{weights.source} does not exist')


def check(weights: Weights) -> tuple[str, str]:
    """Return the state of local weights: ('whole', ''), ('readable', '') or ('damaged', why).

    'whole' needs a SHA-256 from the source: the hub's cache names large files by it, OpenAI's URLs and the names of
    `timm`'s downloads contain it. 'readable' says that the file's structure alone was checked.
    """
    path = path_of(weights)
    assert path is not None  # the weights are local
    expected = None
    if weights.files:
        expected = re.fullmatch('[0-9a-f]{64}', os.path.basename(os.path.realpath(path)))
    elif '://' in weights.source:
        expected = re.search(r'(?<=/)[0-9a-f]{64}(?=/)|(?<=-)[0-9a-f]{8}(?=\.pth$)', weights.source)
    if os.path.isfile(path):
        files = [path]
    else:
        suffixes = ('.safetensors', '.bin', '.pt', '.pth')
        files = [file for file in glob.glob(os.path.join(path, '*')) if file.endswith(suffixes)]
    states = [_check_file(file, expected and expected.group()) for file in files]
    states = states or [('damaged', f'no weights in {path}')]
    return min(states, key=lambda state: STATES.index(state[0]))


def size_of(path: str) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    files = [path] if os.path.isfile(path) else glob.glob(os.path.join(path, '*'))
    return sum(os.path.getsize(file) for file in files)


def _from_hub(weights: Weights, file: str) -> str:
    """Return the path of a file of the hub; a broken connection is resumed, which older hub clients do not do."""
    tries_left = TRIES
    while True:
        tries_left -= 1
        try:
            return hf_hub_download(weights.source, file, cache_dir=weights.cache_dir)
        except OSError as error:
            if not tries_left or 'IncompleteRead' not in str(error):
                raise


def _url_target(weights: Weights) -> str:
    """Return the path at which the libraries keep a download from a URL."""
    if weights.kind == 'backbone':
        folder = os.path.expanduser(weights.cache_dir or '~/.cache/clip')
    else:
        folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    return os.path.join(folder, os.path.basename(weights.source))


def _check_file(path: str, expected: str | None) -> tuple[str, str]:
    """Return the state of a file, see `check`; `expected` is the head of the file's SHA-256, or None."""
    if expected:
        real = os.path.realpath(path)
        digest = _sha256(real)
        if not digest.startswith(expected):
            return 'damaged', f'its SHA-256 is {digest[:16]}..., not {expected[:16]}...; remove {real} and get it again'
        return 'whole', ''
    try:
        if path.endswith('.safetensors'):
            with safe_open(path, 'pt') as f:
                f.keys()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken:
                return 'damaged', f'{broken} in {path} is broken; remove the file and get it again'
        else:
            torch.load(path, map_location='meta', weights_only=True)
    except Exception as error:  # the readers raise many kinds of errors
        return 'damaged', f'{path} cannot be read ({one_line(error)}); remove it and get it again'
    return 'readable', ''


def _sha256(path: str) -> str:
    """Return the SHA-256 of a file, and show how much of it is read."""
    size, title = os.path.getsize(path), os.path.basename(path)[:16]
    with Bar(total=size, unit='B', unit_scale=True, leave=False, desc=title) as bar:
        return hash_file(path, progress=bar.update)
