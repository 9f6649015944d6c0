"""What is kept of a segmented picture: labels, scores, and the command line that gives both again."""

import io
import os
import shlex

import numpy as np
import pytest
from PIL import Image

from fsa_seg import Segmenter
from fsa_seg.apps.outputs import command_line, labels_png, write_scores
from fsa_seg.visualization.colors import class_colors

from conftest import MINI

IMAGE = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000033.jpg')
TOY = dict(backbone='toy', vfm='toy', method='sclip')
AWKWARD = [  # words that a shell, argparse or a page could take for something else
    'it\'s; a "quoted" cat',
    '-x',
    '--labels=stolen.png; $(touch stolen) `touch stolen`',
    '--',
    '<b onclick="alert(1)">sky</b> & #1 \\ *',
    'two\nlines; 猫',
    '@file %s {0} !! ~',
]


@pytest.mark.parametrize('count, mode', [(3, 'P'), (256, 'P'), (257, 'I;16')])
def test_labels_as_a_png(count, mode):
    """The values are the classes, the palette has their colours, and no class is cut off."""
    labels = np.arange(count).repeat(2).reshape(2, count)
    file = io.BytesIO()
    labels_png(labels, count).save(file, 'PNG')
    read = Image.open(file)
    assert read.mode == mode and np.array_equal(np.array(read), labels)
    if mode == 'P':
        assert np.array_equal(np.array(read.convert('RGB'))[labels == 2], [class_colors(count)[2]] * 2)


def test_scores_as_a_file():
    scores = np.random.default_rng(0).random((len(AWKWARD), 3, 4), np.float32)
    file = io.BytesIO()
    write_scores(file, scores, AWKWARD)
    read = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    assert read['scores'].dtype == np.float32 and np.array_equal(read['scores'], scores)
    assert read['classes'].tolist() == AWKWARD


@pytest.mark.parametrize('name', ['street.jpg', "-a 'b' <i>;$(c).jpg"])
@pytest.mark.parametrize(
    'feedback', [None, 'fsa', dict(lam=2.5, p=0.3, scale=10, uniform_scale=0.0, terms=['WA', 'W']), dict(terms=['W'])]
)
def test_the_command_line_gives_the_same(run_tool, tmp_path, name, feedback):
    """With words of any kind; the shell reads the line as it was meant, and runs nothing."""
    os.symlink(IMAGE, tmp_path / name)
    line = command_line(name, AWKWARD, feedback=feedback, prob_thd=0.2, scores='-scores.npz', **TOY)
    assert ('--fsa' in line) == isinstance(feedback, dict) and ('--no-fsa' in line) == (feedback is None)
    program, tool, *arguments = shlex.split(line)
    status, printed = run_tool(tool, *arguments)
    assert status == 0, printed
    expected = Segmenter(feedback=feedback, device='cpu', **TOY).segment(IMAGE, AWKWARD, 0.2, scores=True)
    assert np.array_equal(np.array(Image.open(tmp_path / 'labels.png')), expected.labels)
    kept = np.load(tmp_path / '-scores.npz')
    assert np.array_equal(kept['scores'], expected.scores)
    assert [text.strip(';') for text in kept['classes']] == AWKWARD
    assert {path.name for path in tmp_path.iterdir()} == {name, 'labels.png', '-scores.npz', 'segmented.png'}


def test_the_command_line_names_what_differs_alone(run_tool):
    line = command_line('a.jpg', ['cat; kitten', 'sky'])
    assert line == "fsa-seg segment a.jpg 'cat; kitten' sky --labels labels.png"
    line = command_line(
        'a.jpg', ['cat'], 'naclip', 'sfr+fsa', 'clip_vit-l14', protocol='naclip', precision='fp32', random_weights=0
    )
    assert line == (
        'fsa-seg segment a.jpg cat --method naclip --feedback sfr+fsa --backbone clip_vit-l14 --protocol naclip '
        '--precision fp32 --random-weights 0 --labels labels.png'
    )
    assert command_line('a.jpg', ['cat'], feedback=False, vfm='-v', image_max=4095, labels=None) == (
        'fsa-seg segment a.jpg cat --no-fsa --vfm=-v --image-max 4095'
    )
