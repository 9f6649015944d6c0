"""Where the repository's own files lie, and where parts are looked for."""
import contextlib
import os

from fsa_seg.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = os.path.join(ROOT, 'configs')
TOY_MARK = 'TOY_WORLD'  # a file of this name marks a data root of drawn scenes


def local_path(path, what):
    """Return `path` if it exists, taken from the working directory or else from the repository; else a UserError."""
    for base in ('', ROOT):
        candidate = os.path.join(base, os.path.expanduser(path or ''))
        if path and os.path.exists(candidate):
            return candidate
    raise UserError(f'{what}: {path!r} does not exist, neither here nor in {ROOT}')


def find_root(path):
    """Return a folder of data, taken from the working directory or else from the repository."""
    other = os.path.join(ROOT, path)
    return other if not os.path.isdir(path) and os.path.isdir(other) else path


def make_folder(path):
    """Make a folder; one that cannot be made or written to is a UserError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {path} cannot be made: {error}') from None
    if not os.access(path, os.W_OK):
        raise UserError(f'the folder {path} cannot be written to')


@contextlib.contextmanager
def new_file(path):
    """Yield a name beside `path`; what is written there takes its place when the block ends well, and is removed else."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = f'{path}.{os.getpid()}.part'
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def config_folders():
    """Return the folders that hold parts: the repository's configs/, then those that FSA_SEG_CONFIGS names."""
    extra = [os.path.expanduser(folder) for folder in os.environ.get('FSA_SEG_CONFIGS', '').split(os.pathsep) if folder]
    for folder in extra:
        if not os.path.isdir(folder):
            raise UserError(f'FSA_SEG_CONFIGS names {folder}, which is no folder')
    return [CONFIGS, *extra]


def part_files(subfolder):
    """Return the files of parts of one kind, as a dict of name -> path.

    Args:
        subfolder (str): 'backbones', 'vfms', ...

    Raises:
        UserError: a folder of FSA_SEG_CONFIGS that is missing, or two files of one name.
    """
    found = {}
    for folder in config_folders():
        folder = os.path.join(folder, subfolder)
        for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            name, extension = os.path.splitext(file)
            if extension != '.py':
                continue
            if name in found:
                raise UserError(f'two files are called {name!r}: {found[name]} and {folder}/{file}; rename one')
            found[name] = os.path.join(folder, file)
    return found
