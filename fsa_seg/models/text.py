"""Text queries: the words of a data set's classes, and their CLIP embeddings."""

import hashlib
import json
import logging
import os

import open_clip
import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from open_clip.tokenizer import get_clean_fn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from fsa_seg.errors import UserError, warn_once
from fsa_seg.models.clip import architecture_digest
from fsa_seg.ops.device import trim_memory
from fsa_seg.system.paths import new_file

TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES
WORDS_AT_ONCE = 5  # each of them is as many prompts as there are templates


def class_words(classes, rename=None, synonyms=None, background=None, join_spaces=False):
    """Return the query words of each class: a list with one list of strings per class.

    The rules stand in a protocol's ``words``; a class that no rule names is queried by its own name, or, where that is
    a list of synonyms ("cat; kitten"), by each of them.

    Args:
        classes (sequence of str): class names in label order.
        rename (dict): name -> the one word used in its place.
        synonyms (dict): name -> list of words, every one of which stands for the class.
        background (list of str): words of the class "background".
        join_spaces (bool): remove the spaces inside names ("traffic light" -> "trafficlight").

    Raises:
        UserError: a rule names a class that `classes` lacks.
    """
    rules = {name: [word] for name, word in (rename or {}).items()}
    rules.update(synonyms or {})
    if background:
        rules['background'] = background
    names = [name.strip() for name in classes]
    unknown = sorted(set(rules) - set(names))
    if unknown:
        raise UserError(f'word rules name the classes {unknown}, which are not among the classes {names}')
    return [
        list(rules.get(name) or [word.replace(' ', '') if join_spaces else word for word in split_words(name)])
        for name in names
    ]


def read_words(path, classes):
    """Return the query words of each class from a text file: one line per class in label order, synonyms by ';'.

    Raises:
        UserError: the file is missing, a line is empty, or the number of lines differs from the classes'.
    """
    words = [split_words(line) for line in _lines(path, 'words')]
    check_words(words, classes, path)
    return words


def read_classes(path, published=False):
    """Return the class names in a text file: one line per class in label order, synonyms by ';' ("cat; kitten").

    Args:
        path (str): the file.
        published (bool): see `check_distinct`.

    Raises:
        UserError: the file is missing or empty, a line is empty, or two are the same, or one text to CLIP.
    """
    names = ['; '.join(split_words(line)) for line in _lines(path, 'names')]
    while names and not names[-1]:  # blank lines at the end
        names.pop()
    if not names:
        raise UserError(f'{path} is empty; give one line per class, in the order of the labels')
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise UserError(
                f'line {i + 1} of {path} is {"empty" if not name else f"{name!r}, as line {names.index(name) + 1}"};'
                ' give one line per class, in the order of the labels'
            )
    check_distinct([split_words(name) for name in names], names, path, published)
    return names


def _lines(path, what):
    try:
        with open(path, encoding='utf-8-sig') as f:
            return f.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the file of class {what} {path!r} cannot be read as UTF-8 text: {error}') from None


def split_words(line):
    """Return the words of one class: 'cat; kitten' -> ['cat', 'kitten']."""
    return [word.strip() for word in line.split(';') if word.strip()]


def check_words(words, classes, where, published=False):
    """Raise a UserError unless every class has its list of words, and no word is that of two, see `check_distinct`."""
    if len(words) != len(classes):
        raise UserError(
            f'{where} has words for {len(words)} classes, but the data set has {len(classes)}: give one '
            f'line (list) per class, in the order {", ".join(classes[:5])}, ...'
        )
    empty = [i for i, group in enumerate(words) if not group]
    if empty:
        raise UserError(f'{where} has no word for class {empty[0]} ({classes[empty[0]]!r})')
    check_distinct(words, classes, where, published)


def check_distinct(words, classes, where, published=False):
    """Raise a UserError if words of two classes are one text to CLIP, whose tokenizer lower-cases and cleans.

    Args:
        words (list of list of str): of each class.
        classes (sequence of str): names.
        where (str): the error's subject.
        published (bool): the words are as they were published: print a warning in place of the error.
    """
    clean, owners = get_clean_fn('lower'), {}
    for i, group in enumerate(words):
        for word in group:
            owner, other = owners.setdefault(clean(word), (i, word))
            if owner == i:
                continue
            said = (
                f'{where}: {other!r} of class {owner} ({classes[owner]}) and {word!r} of class {i} ({classes[i]}) '
                'are one text to CLIP'
            )
            if not published:
                raise UserError(
                    f'{said}, so that the first class would get every pixel of both; give them different words'
                )
            warn_once(f'{said}, as published; a pixel that scores best for it gets the first class')


def encode_queries(clip, tokenizer, queries, weights, device='cpu', cache_dir=None):
    """Return the unit embedding of each query, (Q, E) float32: the mean over `open_clip`'s 80 ImageNet templates.

    Built by `open_clip.build_zero_shot_classifier` in float32 and kept on disk, under a key of the weights, the
    architecture (mask and pooling included), the words and their tokens, the templates and open_clip's version.

    Args:
        clip: an `open_clip` model whose text tower is float32; it is moved to `device` if it has to work.
        tokenizer: its tokenizer.
        queries (list of str): the words.
        weights (str): digest of the model's weights.
        device (str or torch.device): where to work.
        cache_dir (str): by default the environment's FSA_SEG_CACHE or ~/.cache/fsa_seg.
    """
    cache_dir = cache_dir or os.environ.get('FSA_SEG_CACHE', os.path.expanduser('~/.cache/fsa_seg'))
    tokens = tokenizer([template('') for template in TEMPLATES] + list(queries))
    key = [
        weights,
        architecture_digest(clip),
        open_clip.__version__,
        templates_digest(),
        list(queries),
        tokens.tolist(),
    ]
    path = os.path.join(cache_dir, 'text', hashlib.sha256(json.dumps(key).encode()).hexdigest() + '.safetensors')
    if os.path.exists(path):
        try:
            text = load_file(path)['text']
            if len(text) == len(queries) and _are_units(text):
                return text
        except (SafetensorError, KeyError, OSError):
            pass
        print_log(f'{path} is damaged and is built again', 'current', logging.WARNING)
    print_log(f'embedding {len(queries)} queries with {len(TEMPLATES)} templates', 'current')
    text = torch.cat(
        [
            open_clip.build_zero_shot_classifier(
                clip.to(device), tokenizer, queries[start : start + WORDS_AT_ONCE], TEMPLATES, device=device
            )
            .T.float()
            .cpu()
            for start in tqdm(
                range(0, len(queries), WORDS_AT_ONCE),
                'embedding words',
                delay=2,
                leave=False,
                disable=not is_main_process(),
            )
        ]
    )
    trim_memory()
    if not _are_units(text):
        wrong = [query for query, row in zip(queries, text) if not _are_units(row[None])]
        raise UserError(
            f'the text embeddings of {len(wrong)} of {len(queries)} words, {wrong[0]!r} the first, are no finite unit '
            "vectors: the text tower's weights are damaged; get them again, or name others"
        )
    try:
        with new_file(path) as part:
            save_file(dict(text=text), part)
    except (OSError, SafetensorError, UserError) as error:
        print_log(
            f'the text embeddings are not kept: {error}; FSA_SEG_CACHE names another folder', 'current', logging.WARNING
        )
    return text


def _are_units(text):
    """Return whether all rows (Q, E) are finite and of length 1."""
    return bool(((text.norm(dim=-1) - 1).abs() < 1e-3).all())  # a comparison with NaN is false


def templates_digest():
    """Return the SHA-256 of the prompt templates, as a hexadecimal string."""
    return hashlib.sha256('\n'.join(template('{}') for template in TEMPLATES).encode()).hexdigest()
