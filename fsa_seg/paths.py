"""Where the repository's own files lie, and where parts are looked for."""
import os

from fsa_seg.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = os.path.join(ROOT, 'configs')


def local_path(path, what):
    """Return `path` if it exists, taken from the working directory or else from the repository; else a UserError."""
    for base in ('', ROOT):
        candidate = os.path.join(base, os.path.expanduser(path or ''))
        if path and os.path.exists(candidate):
            return candidate
    raise UserError(f'{what}: {path!r} does not exist, neither here nor in {ROOT}')


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
