"""Python in a process of its own that has imported the libraries, but not the package.

A new interpreter imports the libraries for seconds; this process is forked from a server that has imported them once.
What the interpreter itself does at its start and at its end is tested with `subprocess`.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

LIBRARIES = ['torch', 'torchvision', 'open_clip', 'timm', 'mmseg.apis', 'matplotlib.pyplot', 'huggingface_hub']
LIBRARIES += ['torch._dynamo', 'torch.testing', 'scipy.io', 'pytest']
OWN = [os.path.dirname(os.path.abspath(__file__))]
OWN += [os.path.dirname(OWN[0]), os.path.join(os.path.dirname(OWN[0]), 'tools')]  # folders of the tests' sys.path


def run_python(*arguments, cwd=None, env=None):
    """Run `python ARGUMENTS` (a file, -c or -m) and return the `subprocess.CompletedProcess`, with its output as text.

    Args:
        arguments: of the interpreter.
        cwd: folder; by default the present.
        env: the whole environment; by default the present.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('out', 'err')]
        process = start_python(*arguments, cwd=cwd, env=env, outputs=outputs)
        process.join()
        texts = []
        for path in outputs:
            with open(path, encoding='utf-8', errors='replace') as f:
                texts.append(f.read())
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def start_python(*arguments, outputs, cwd=None, env=None):
    """Start `python ARGUMENTS` and return its `multiprocessing.Process`.

    Args:
        arguments, cwd, env: of `run_python`.
        outputs: files that get its standard output and its standard error.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(LIBRARIES)
    environment = dict(os.environ if env is None else env)
    paths = [os.path.abspath(path) for path in outputs]
    options = (list(map(os.fspath, arguments)), os.fspath(cwd or os.getcwd()), environment, paths)
    process = context.Process(target=_run, args=options)
    process.start()
    return process


def _run(arguments, folder, environment, outputs):
    """Be `python ARGUMENTS`, in the forked process."""
    for number, path in enumerate(outputs, 1):
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(output, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the system's own, as in any process
    importlib.reload(sys.modules['huggingface_hub.constants'])  # it reads the environment
    first, *rest = arguments
    start = '' if first in ('-c', '-m') else os.path.dirname(os.path.abspath(first))
    named = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path]
    sys.path[:] = [start, *named, *(path for path in sys.path if path not in ('', *OWN, *named))]
    for name in ('new_process', '__mp_main__'):
        sys.modules.pop(name, None)
    try:
        if first == '-c':
            sys.argv = ['-c', *rest[1:]]
            exec(compile(rest[0], '<string>', 'exec'), {'__name__': '__main__'})
        elif first == '-m':
            sys.argv = rest
            runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(first, run_name='__main__')
    finally:
        atexit._run_exitfuncs()
