"""Plans of data sets, and the converters and readers that several sources share.

A plan lists the images to take over, the label images to make from annotations, and the lists to write.
"""

import importlib
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fsa_seg.datasets.label_images import check_range, decode_labels
from fsa_seg.datasets.prepare.downloads import Download, Downloads, File
from fsa_seg.errors import UserError
from fsa_seg.system.files import check_memory

NOT_ALLOWED = -1  # in a table of labels: the format does not have this label
MOST_BYTES = 8  # of a number in a MATLAB file

Converter = Callable[[bytes | None, str], list[np.ndarray]]  # (annotation, name for errors) -> label map of each target


class Labels(NamedTuple):
    """One annotation, and the label images made from it.

    Attributes:
        source (File): the annotation; None if the converter holds all it needs.
        convert (Converter): returns one label map, (height, width), for each target.
        image (str): the annotated image, below the data set's folder; label maps have its size.
        targets (tuple of str): label images to write, below the data set's folder.
        as_is (bool): write the annotation's own bytes.
    """

    source: File | None
    convert: Converter
    image: str
    targets: tuple[str, ...]
    as_is: bool = False


class Plan:
    """Contents of a data set's folder.

    Attributes:
        images (list of (File, str)): images, and their paths below the data set's folder.
        labels (list of Labels): label images to make.
        texts (dict): path below the data set's folder -> lines of the text file.

    Args:
        downloads (Downloads): files of the publisher.
        recipe (str): the annotations' origin, if a data set has several; None else.
    """

    def __init__(self, downloads: Downloads, recipe: str | None = None):
        self.downloads, self.recipe, self.images, self.labels, self.texts = downloads, recipe, [], [], {}

    def add(
        self,
        names: list[str],
        images: Mapping[str, File],
        image_target: str,
        labels: Mapping[str, File] | None,
        convert: Converter | Mapping[str, Converter],
        *label_targets: str,
        as_is: bool = False,
    ) -> None:
        """Add the images of these names and their labels; a missing image or annotation is a UserError.

        Args:
            names: of the images.
            images: name -> image.
            image_target: the image's path below the data set's folder, with {name} and {folder}: the name up to '_'.
            labels: name -> annotation; None if the converters need none.
            convert: one converter for all names, or name -> converter.
            label_targets: paths of the label images, with {name} and {folder}.
            as_is: see `Labels`.
        """
        for files, what in ((images, 'image'), (labels or convert, 'annotation')):
            missing = [name for name in names if name not in files]
            if missing:
                raise self.downloads.missing(f'{len(missing)} of {len(names)} {what}s (the first is {missing[0]})')
        for name in names:
            image, *targets = (
                target.format(name=name, folder=name.split('_')[0]) for target in (image_target, *label_targets)
            )
            self.images.append((images[name], image))
            converter = convert[name] if isinstance(convert, Mapping) else convert
            self.labels.append(Labels(labels and labels[name], converter, image, tuple(targets), as_is))


class Preparation(NamedTuple):
    """How one data set is prepared.

    Attributes:
        folder (str): the data set's folder, below the data root.
        benchmarks (tuple of str): configs of configs/datasets/ that use the folder.
        plan: function (Downloads, names of splits) -> Plan.
        downloads (tuple of Download): files that need no login.
        by_hand (str): files that need a login, and their address.
    """

    folder: str
    benchmarks: tuple[str, ...]
    plan: Callable[[Downloads, tuple[str, ...]], Plan]
    downloads: tuple[Download, ...] = ()
    by_hand: str = ''

    @property
    def sources(self) -> str:
        """How to get the downloads, for errors."""
        return self.by_hand or f'--download fetches {", ".join(download.name for download in self.downloads)}'


# Converters


def keep_labels(data: bytes, where: str, values: int) -> list[np.ndarray]:
    """Return a label image unchanged; labels neither below `values` nor void are a UserError."""
    labels = decode_labels(data, where)
    check_range(where, np.unique(labels), values)
    return [labels]


def convert_matlab(
    data: bytes, where: str, variable: str, table: np.ndarray, dtype: type = np.uint8
) -> list[np.ndarray]:
    """Return the label map in a variable of a MATLAB file, renumbered by a table."""
    labels = np.atleast_2d(read_matlab(data, where, variable))
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.number):
        raise UserError(f'{variable} in {where} is no label map: {labels.dtype} of shape {labels.shape}')
    return [renumber(labels.astype(np.int32), table, where).astype(dtype)]


def renumber(labels: np.ndarray, table: np.ndarray, where: str) -> np.ndarray:
    """Return `table[labels]`; labels outside the table, or NOT_ALLOWED in it, are a UserError."""
    present = np.unique(labels)
    wrong = [int(label) for label in present if not 0 <= label < len(table) or table[label] == NOT_ALLOWED]
    if wrong:
        raise UserError(f'{where} has the labels {wrong[:5]}, which its format does not have')
    return table[labels]


# Readers


def read_matlab(data: bytes, where: str, variable: str) -> np.ndarray:
    """Return a variable of a MATLAB file; a file of another format, or without the variable, is a UserError."""
    matlab = import_optional('scipy.io')
    try:
        for name, shape, _ in matlab.whosmat(io.BytesIO(data)):
            if name == variable:
                check_memory(MOST_BYTES * math.prod(shape), f'{variable} in {where}, of shape {shape},')
        return matlab.loadmat(io.BytesIO(data), variable_names=[variable])[variable]
    except UserError:
        raise
    except Exception as error:  # the reader raises many kinds
        raise UserError(f'{where} is no MATLAB file with the variable {variable}: {error!r}') from None


def index_files(downloads: Downloads, pattern: str, suffix: str, what: str) -> dict[str, File]:
    """Return the files whose path ends in a pattern, by name: the file's name without `suffix`.

    Raises:
        UserError: two files have one name, or no file matches; `what` names the files.
    """
    files = {}
    for file in downloads.find(pattern):
        name = os.path.basename(file.key).removesuffix(suffix)
        if name in files:
            raise UserError(f'{files[name]} and {file} have the same name {name}; remove either file')
        files[name] = file
    if not files:
        raise downloads.missing(what)
    return files


def read_split(downloads: Downloads, path: str) -> list[str]:
    """Return the image names in the only file whose path ends in `path`."""
    return read_lines(downloads, downloads.find_single(re.escape(path), f'the split {path}'))


def read_lines(downloads: Downloads, file: File) -> list[str]:
    """Return the lines of a text file; an empty file or a repeated line is a UserError."""
    try:
        lines = [line.strip() for line in downloads.read(file).decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f'{file} is no UTF-8 text: {error}') from None
    repeated = [line for line in lines if lines.count(line) > 1] if len(set(lines)) < len(lines) else ()
    if repeated or not lines:
        raise UserError(f'{file} names {repeated[0]} more than once' if repeated else f'{file} is empty')
    return lines


def read_numbered_lines(downloads: Downloads, file: File) -> dict[int, str]:
    """Return the lines 'NUMBER: name' of a text file as number -> name; number 0 is left out."""
    names = {}
    for line in read_lines(downloads, file):
        match = re.fullmatch(r'(\d+)\s*:\s*(.+)', line)
        if not match or int(match.group(1)) in names:
            wrong = 'a second line of its number' if match else 'not of the form NUMBER: name'
            raise UserError(f'{file}: {line!r} is {wrong}')
        names[int(match.group(1))] = match.group(2)
    names.pop(0, None)
    return names


def import_optional(module: str) -> ModuleType:
    """Import a module of a library that only preparations need; a library that is not installed is a UserError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{error}; install the libraries of the preparations with pip install -e '.[data]'") from None
