"""Text queries: the words of a data set's classes, and their CLIP embeddings."""

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from mmengine.dist import is_main_process
from open_clip.tokenizer import get_clean_fn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fsa_seg.errors import UserError, warn_once
from fsa_seg.models.clip import architecture_digest, weights_digest
from fsa_seg.ops.device import trim_memory
from fsa_seg.system.leases import leased
from fsa_seg.system.paths import new_file
from fsa_seg.system.progress import Bar

MOST_ROWS = 2**14  # words whose rows stay in memory: 32 MiB at a width of 512; the disk has the others
TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES
_cleaned = functools.lru_cache(2**14)(get_clean_fn('lower'))  # a table's cells have the same words again and again
NOT_TEXT = ('visual.', 'logit_scale', 'logit_bias')  # what a model has beside its text tower


def class_words(
    classes: Sequence[str],
    rename: dict[str, str] | None = None,
    synonyms: dict[str, list[str]] | None = None,
    background: list[str] | None = None,
    join_spaces: bool = False,
) -> list[list[str]]:
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


def read_words(path: str, classes: Sequence[str]) -> list[list[str]]:
    """Return the query words of each class from a text file: one line per class in label order, synonyms by ';'.

    Raises:
        UserError: the file is missing, a line is empty, or the number of lines differs from the classes'.
    """
    words = [split_words(line) for line in _lines(path, 'words')]
    check_words(words, classes, path)
    return words


def read_classes(path: str, published: bool = False) -> list[str]:
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


def _lines(path: str, what: str) -> list[str]:
    try:
        with open(path, encoding='utf-8-sig') as f:
            return f.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the file of class {what} {path!r} cannot be read as UTF-8 text: {error}') from None


def split_words(line: str) -> list[str]:
    """Return the words of one class: 'cat; kitten' -> ['cat', 'kitten']."""
    return [word.strip() for word in line.split(';') if word.strip()]


def check_words(words: Sequence[Sequence[str]], classes: Sequence[str], where: str, published: bool = False) -> None:
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


def check_distinct(words: Sequence[Sequence[str]], classes: Sequence[str], where: str, published: bool = False) -> None:
    """Raise a UserError if words of two classes are one text to CLIP, whose tokenizer lower-cases and cleans.

    Args:
        words (list of list of str): of each class.
        classes (sequence of str): names.
        where (str): the error's subject.
        published (bool): the words are as they were published: print a warning in place of the error.
    """
    owners: dict[str, tuple[int, str]] = {}  # cleaned word -> its first class and word
    for i, group in enumerate(words):
        for word in group:
            owner, other = owners.setdefault(_cleaned(word), (i, word))
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


class Text(NamedTuple):
    """What an image is segmented into: unit text rows, and how they belong to classes.

    Attributes:
        rows (Q, E): float32 unit rows, the queries of one class side by side, in class order.
        words_per_class (tuple of int): how many queries each class has.
        queries (tuple of str): the words.
    """

    rows: torch.Tensor
    words_per_class: tuple[int, ...]
    queries: tuple[str, ...]

    def to(self, device: str | torch.device) -> 'Text':
        """Return the text with its rows on a device."""
        return self._replace(rows=self.rows.to(device))


class TextEncoder:
    """Embeds words by CLIP's text tower, each word once: rows are kept in memory and on disk.

    A row is the normalised mean over `open_clip`'s 80 ImageNet templates of a word's unit embeddings. It depends on no
    other word. Several threads may encode at a time. Of several processes with one `cache_dir` one embeds a word, and
    the others wait for its row.

    Args:
        clip: an `open_clip` model whose text tower is float32.
        tokenizer: its tokenizer.
        cache_dir (str): folder of the rows; by default the environment's FSA_SEG_CACHE or ~/.cache/fsa_seg.

    Attributes:
        writes (bool): whether new rows are kept on disk. Rows tell words: anybody may embed a word and compare.
    """

    writes = True

    def __init__(self, clip: Any, tokenizer: Callable, cache_dir: str | None = None):
        self._clip, self._tokenizer, self._lock = clip, tokenizer, threading.Lock()
        self._rows: dict[str, torch.Tensor] = {}
        cache_dir = cache_dir or os.environ.get('FSA_SEG_CACHE', os.path.expanduser('~/.cache/fsa_seg'))
        self._cache_dir = os.path.join(cache_dir, 'text')

    @functools.cached_property
    def tower(self) -> str:
        """The fingerprint of the text tower: its weights, its architecture, and open_clip's version."""
        parts = [weights_digest(self._clip, NOT_TEXT), architecture_digest(self._clip, NOT_TEXT)]
        return hashlib.sha256(' '.join([*parts, open_clip.__version__, templates_digest()]).encode()).hexdigest()

    def encode(self, words: Sequence[Sequence[str]], device: str | torch.device = 'cpu') -> Text:
        """Return the `Text` of classes.

        Args:
            words: the query words of each class.
            device: where the text tower works, if it has to.

        Raises:
            UserError: embeddings that are no finite unit vectors.
        """
        queries = tuple(word for group in words for word in group)
        with self._lock:
            if self._missing(queries):
                lease = os.path.join(self._cache_dir, f'{self.tower}.lease')
                with leased(lease, 'embeds words') if self.writes else contextlib.nullcontext():
                    missing = self._missing(queries)  # less, if another process had the lease before
                    if missing:
                        self._embed(missing, device)
            rows = torch.stack([self._rows[word] for word in queries])
            for word in list(self._rows)[:-MOST_ROWS]:
                del self._rows[word]
        return Text(rows, tuple(len(group) for group in words), queries)

    def to_host(self) -> None:
        """Move the text tower to the host; the image tower stays where it is."""
        for name, part in self._clip.named_children():
            if name != 'visual':
                part.to('cpu')
        for tensor in (*self._clip.parameters(recurse=False), *self._clip.buffers(recurse=False)):
            tensor.data = tensor.data.cpu()

    def _missing(self, queries: Sequence[str]) -> list[str]:
        """Return the queries without a row in memory or on disk, each once."""
        return [word for word in dict.fromkeys(queries) if word not in self._rows and not self._read(word)]

    def _embed(self, words: list[str], device: str | torch.device) -> None:
        """Embed words, and keep their rows in memory and on disk."""
        self._clip.to(device)
        hidden = not is_main_process()
        for word in Bar(words, 'embedding words', unit='word', delay=2, leave=False, disable=hidden):
            row = embed_word(self._clip, self._tokenizer, word, device).cpu()
            if not _are_units(row[None]):
                raise UserError(
                    f"the text embedding of {word!r} is no finite unit vector: the text tower's weights are damaged; "
                    'get them again, or name others'
                )
            self._rows[word] = row
            if self.writes:
                self._write(word, row)
        trim_memory()

    def _path(self, word: str) -> str:
        tokens = self._tokenizer([word])[0].tolist()
        key = hashlib.sha256(json.dumps([self.tower, word, tokens]).encode()).hexdigest()
        return os.path.join(self._cache_dir, key[:2], f'{key}.safetensors')

    def _read(self, word: str) -> bool:
        """Take a word's row from disk, and return whether it is there."""
        path = self._path(word)
        try:
            row = load_file(path)['row'] if os.path.exists(path) else None
            if row is not None and row.ndim == 1 and _are_units(row[None]):
                self._rows[word] = row
                return True
        except (SafetensorError, KeyError, OSError):
            row = 'damaged'
        if row is not None:
            warn_once(f'{path} is damaged; the word {word!r} is embedded again')
        return False

    def _write(self, word: str, row: torch.Tensor) -> None:
        try:
            with new_file(self._path(word)) as part:
                save_file(dict(row=row), part)
        except (OSError, SafetensorError, UserError) as error:
            warn_once(f'the text embeddings are not kept: {error}; FSA_SEG_CACHE names another folder')


@torch.no_grad()
def embed_word(clip: Any, tokenizer: Callable, word: str, device: str | torch.device = 'cpu') -> torch.Tensor:
    """Return the unit embedding (E) float32 of a word: the mean over the templates, normalised.

    Args:
        clip: an `open_clip` model on the device.
        tokenizer: its tokenizer.
        word: the word.
        device: where to work.
    """
    tokens = tokenizer([template(word) for template in TEMPLATES]).to(device)
    mean = F.normalize(embed_prompts(clip, tokens), dim=-1).mean(0)
    return (mean / mean.norm()).float()


def embed_prompts(clip: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (P, E) of prompts, before they are normalised.

    A causal tower that reads the end-of-text token needs no token behind it: the prompts are cut at the longest one's.
    Other towers get all tokens, through `open_clip`'s own function.

    Args:
        clip: an `open_clip` model.
        tokens (P, context length): of the tokenizer.
    """
    if not reads_end_of_text(clip):
        return clip.encode_text(tokens)
    ends = tokens.argmax(-1)  # the end-of-text token has the highest number
    length = int(ends.max()) + 1
    x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = clip.ln_final(x)[torch.arange(len(x), device=x.device), ends]
    return clip.text_projection(x) if isinstance(clip.text_projection, torch.nn.Linear) else x @ clip.text_projection


def reads_end_of_text(clip: Any) -> bool:
    """Return whether a model's text tower is open_clip's causal one, pooled at the end-of-text token."""
    return (
        type(clip) is open_clip.CLIP
        and getattr(clip, 'text_pool_type', None) == 'argmax'
        and getattr(clip, 'attn_mask', None) is not None
        and getattr(clip, 'text_projection', None) is not None
        and bool((clip.attn_mask == float('-inf')).equal(torch.ones_like(clip.attn_mask).triu_(1).bool()))
    )


def _are_units(text: torch.Tensor) -> bool:
    """Return whether all rows (Q, E) are finite and of length 1."""
    return bool(((text.norm(dim=-1) - 1).abs() < 1e-3).all())  # a comparison with NaN is false


@functools.cache
def templates_digest() -> str:
    """Return the SHA-256 of the prompt templates, as a hexadecimal string."""
    return hashlib.sha256('\n'.join(template('{}') for template in TEMPLATES).encode()).hexdigest()
