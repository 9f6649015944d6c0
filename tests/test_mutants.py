"""The mutants fit the present code, and the tool tells the mutants that tests see from the mutants that survive."""

import os
import re

import mutants
import pytest
from mutants import MUTANTS, Mutant

from fsa_seg.errors import UserError

from conftest import ROOT
from new_process import LIBRARIES

mutants.PROCESSES.set_forkserver_preload(LIBRARIES)  # a process has one server, whoever starts it
TESTS = ('tests/ops/test_labels.py::test_prob_thd',)


@pytest.mark.parametrize('mutant', MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_fits(mutant):
    """The mutant's text stands once in its file, and its tests exist."""
    assert mutants.fits(mutant) and mutant.new != mutant.old
    for test in mutant.tests:
        file, _, name = test.partition('::')
        with open(os.path.join(ROOT, file), encoding='utf-8') as f:
            assert not name or re.search(rf'^def {name}\(', f.read(), re.M), test


def test_names_are_unique_and_all_files_of_the_maths_and_of_the_sweep_have_mutants():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    folders = dict(
        ops='attention feedback labels last_block pamr readout windows sfr repair propagation label_propagation '
        'affinity regions probes',
        methods='base clearclip maskclip naclip pearl resclip scclip sfp gem lposs trident corrclip',
        models='clip vfm text segmentor shared_pass whole_image regions sam_refinement kept',
        sweep='plan worker state estimate',
        evaluation='metric loop passes ranks data_checks',
        system='leases stopping',
        cli='benchmark launch submit',
    )
    files = [f'{folder}/{name}' for folder, names in folders.items() for name in names.split()]
    files += ['datasets/data_sets', 'apps/segmenter']
    assert {f'fsa_seg/{name}.py' for name in files} <= {mutant.file for mutant in MUTANTS}


def test_a_mutant_that_a_test_sees_and_one_that_none_sees(capsys):
    fatal = next(mutant for mutant in MUTANTS if mutant.name == 'prob_thd_takes_what_equals_it')._replace(tests=TESTS)
    harmless = Mutant('harmless', 'fsa_seg/ops/labels.py', '"""From the cosines', '"""From cosines', TESTS)
    assert mutants.run([fatal, harmless], 1) == ['harmless']
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [f'killed    {fatal.name} by {TESTS[0]}', f'SURVIVED  harmless under {TESTS[0]}']
    assert mutants.fits(fatal) and mutants.fits(harmless)  # the repository itself does not change
    with pytest.raises(UserError, match='the tests fail without a mutant: .*not found: .*test_gone'):
        mutants.run([fatal._replace(tests=('tests/ops/test_windows.py::test_gone',))], 1)


def test_status(run_tool, monkeypatch):
    for alive, status, message in (
        ([], 0, f'{len(MUTANTS)} of {len(MUTANTS)} killed'),
        (['a'], 1, f'{len(MUTANTS) - 1} of {len(MUTANTS)} killed; alive: a'),
    ):
        monkeypatch.setattr(mutants, 'run', lambda *_, alive=alive: alive)
        assert run_tool('mutants') == (status, message + '\n')
    status, printed = run_tool('mutants', '--list')
    assert status == 0 and len(printed.splitlines()) == len(MUTANTS)
    status, printed = run_tool('mutants', '--only', 'fsa_lamda')
    assert status == 1 and "unknown mutant 'fsa_lamda' (did you mean 'fsa_lambda'?)" in printed
    assert run_tool('mutants', '--jobs', 0)[0] == 1
    monkeypatch.setattr(mutants, 'MUTANTS', [MUTANTS[0], MUTANTS[1]._replace(name='gone', old='is nowhere')])
    status, printed = run_tool('mutants')
    assert status == 1 and 'the text of 1 mutants does not stand once' in printed and 'gone (fsa_seg/' in printed
