"""Weights of backbones and VFMs as files: where they come from, whether they are here, and whether they are whole."""

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
from mmseg.registry import MODELS
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained
from safetensors import safe_open
from tqdm import tqdm

from fsa_seg.config.components import load_part, part_config, part_names
from fsa_seg.errors import UserError, one_of
from fsa_seg.models.clip import load_clip, loading_weights
from fsa_seg.system.files import hash_file
from fsa_seg.system.paths import local_path

KINDS = ('backbone', 'vfm')
TIMM_FILES = ('model.safetensors', 'pytorch_model.bin')  # what timm looks for in a repository of the hub, in its order
CLIP_FILES = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)  # what open_clip looks for
TRIES = 5  # connections for one file of the hub


class Weights(NamedTuple):
    """Where a part's weights come from.

    Attributes:
        kind (str), name (str): the part: 'backbone' or 'vfm', and its name.
        licence (str): of the weights.
        source (str): the hub's repository, a URL, or a local path.
        files (tuple of str): names to look for in the repository, in order; empty for a URL or a path.
        tag (dict): `open_clip`'s description of a tag; None for others.
        cache_dir (str): folder of downloads; None for the library's own.
    """

    kind: str
    name: str
    licence: str
    source: str
    files: tuple[str, ...] = ()
    tag: dict | None = None
    cache_dir: str | None = None


def all_weights():
    """Return the `Weights` of every backbone and VFM part."""
    return [weights_of(kind, name) for kind in KINDS for name in part_names(kind)]


def find_weights(names):
    """Return the `Weights` of the parts called so; an unknown name is a UserError."""
    known = all_weights()
    for name in names:
        one_of(name, {weights.name for weights in known}, 'backbone or VFM')
    return [weights for weights in known if weights.name in names]


def weights_of(kind, name):
    """Return the `Weights` of one part, given its kind and its name or file."""
    return weights_from(kind, load_part(kind, name))


def weights_from(kind, part):
    """Return the `Weights` of a part that is loaded, or of the model's config that was made of the part."""
    name, licence = part.get('name', part.get('model')), part.get('licence', '–')
    model = part.get('model', '')
    local = part.get('checkpoint') or (model[10:] if model.startswith('local-dir:') else None)
    if local or not (kind == 'backbone' or timm.is_model(model)):  # a class of its own: its weights are its own matter
        return Weights(kind, name, licence, local or part.type)
    if kind == 'backbone':
        tag = open_clip.get_pretrained_cfg(part.model, part.get('pretrained') or '')
        if not tag:
            raise UserError(f'backbone {name}: open_clip has no weights {part.get("pretrained")!r} of {part.model}')
        repository, file = os.path.split(tag.get('hf_hub') or '')
        files = ((file,) if file else CLIP_FILES) if repository else ()
        return Weights(kind, name, licence, repository or tag['url'], files, tag, part.get('cache_dir'))
    cfg = timm.get_pretrained_cfg(part.model, allow_unregistered=False)
    if not cfg or not (cfg.hf_hub_id or cfg.url):
        raise UserError(f'VFM {name}: timm has no weights for {part.model}')
    files = ((cfg.hf_hub_filename,) if cfg.hf_hub_filename else TIMM_FILES) if cfg.hf_hub_id else ()
    return Weights(kind, name, cfg.license or licence, cfg.hf_hub_id or cfg.url, files)


def path_of(weights):
    """Return the file or folder of weights that are here, or None."""
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


def get(weights):
    """Download weights that are not here, by the libraries' own clients (progress, caches, offline switches, resuming).

    Returns:
        str: the file's path.

    Raises:
        UserError: they cannot be downloaded; the message names both ways out.
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


def check(weights):
    """Return what is known of weights that are here: ('whole' or 'readable', '') or ('damaged', why).

    'whole' is said where the source gives a SHA-256 (the hub's large files are stored under theirs, OpenAI's URLs and
    the names of `timm`'s downloads hold it), 'readable' where the file's own structure alone could be checked.
    """
    path = path_of(weights)
    expected = None
    if weights.files:
        expected = re.fullmatch('[0-9a-f]{64}', os.path.basename(os.path.realpath(path)))
    elif '://' in weights.source:
        expected = re.search(r'(?<=/)[0-9a-f]{64}(?=/)|(?<=-)[0-9a-f]{8}(?=\.pth$)', weights.source)
    files = (
        [path]
        if os.path.isfile(path)
        else [
            file
            for file in glob.glob(os.path.join(path, '*'))
            if file.endswith(('.safetensors', '.bin', '.pt', '.pth'))
        ]
    )
    states = [_check_file(file, expected and expected.group()) for file in files]
    states = states or [('damaged', f'no weights in {path}')]
    return min(states, key=lambda state: ('damaged', 'readable', 'whole').index(state[0]))


def size_of(path):
    """Return the bytes of a file, or of the files of a folder."""
    files = [path] if os.path.isfile(path) else glob.glob(os.path.join(path, '*'))
    return sum(os.path.getsize(file) for file in files)


def parameters(kind, name):
    """Return the number of a part's parameters, without making them."""
    part = load_part(kind, name)
    with torch.device('meta'):
        model = load_clip(**part_config(part, 0))[0] if kind == 'backbone' else MODELS.build(part_config(part, 0))
    return sum(parameter.numel() for parameter in model.parameters())


def _from_hub(weights, file):
    """Return the path of a file of the hub; a broken connection is gone on with, which older hub clients do not do."""
    for left in reversed(range(TRIES)):
        try:
            return hf_hub_download(weights.source, file, cache_dir=weights.cache_dir)
        except OSError as error:
            if not left or 'IncompleteRead' not in str(error):
                raise


def _url_target(weights):
    """Return where the libraries keep what they download from a URL."""
    folder = (
        os.path.expanduser(weights.cache_dir or '~/.cache/clip')
        if weights.kind == 'backbone'
        else os.path.join(torch.hub.get_dir(), 'checkpoints')
    )
    return os.path.join(folder, os.path.basename(weights.source))


def _check_file(path, expected):
    if expected:
        real = os.path.realpath(path)
        found = _sha256(real)
        if not found.startswith(expected):
            return 'damaged', f'its SHA-256 is {found[:16]}..., not {expected[:16]}...; remove {real} and get it again'
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
    except Exception as error:  # the readers raise many kinds
        return 'damaged', f'{path} cannot be read ({str(error)[:100]}); remove it and get it again'
    return 'readable', ''


def _sha256(path):
    """Return the SHA-256 of a file, and show how much of it is read."""
    size, title = os.path.getsize(path), os.path.basename(path)[:16]
    with tqdm(total=size, unit='B', unit_scale=True, leave=False, desc=title) as bar:
        return hash_file(path, progress=bar.update)
