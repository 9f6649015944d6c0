import concurrent.futures
import os

import open_clip
import pytest
import torch

from fsa_seg.config.components import class_names, load_component, protocol_settings
from fsa_seg.errors import UserError
from fsa_seg.models import text as text_module
from fsa_seg.models.text import TEMPLATES, TextEncoder, class_words, embed_prompts, embed_word, read_classes, read_words

CLASSES = ['background', 'boat', 'traffic light ', 'person']


def test_rules():
    words = class_words(
        CLASSES,
        rename=dict(boat='ship'),
        synonyms=dict(person=['person', 'body']),
        background=['sky', 'wall'],
        join_spaces=True,
    )
    assert words == [['sky', 'wall'], ['ship'], ['trafficlight'], ['person', 'body']]
    assert class_words(CLASSES)[2] == ['traffic light']


def test_a_rule_for_no_class():
    with pytest.raises(UserError, match='bota'):
        class_words(CLASSES, rename=dict(bota='ship'))


@pytest.mark.parametrize(
    'protocol, dataset, queries',
    [
        ('proxyclip', 'voc21', 46),
        ('proxyclip', 'coco_object', 97),
        ('sclip', 'voc21', 56),
        ('sclip', 'coco_object', 113),
        ('clearclip', 'voc21', 21),
        ('clearclip', 'coco_object', 81),
        ('proxyclip', 'context60', 60),
        ('fsa', 'voc21', 46),
        ('sclip', 'voc20', 30),
        ('proxyclip', 'ade20k', 150),
        ('proxyclip', 'coco_stuff164k', 171),
    ],
)
def test_published_numbers_of_queries(protocol, dataset, queries):
    rules = protocol_settings(load_component('protocol', protocol), dataset)['words']
    words = class_words(class_names(load_component('dataset', dataset)), **rules)
    assert sum(len(group) for group in words) == queries


def words_of(protocol, dataset):
    rules = protocol_settings(load_component('protocol', protocol), dataset)['words']
    classes = class_names(load_component('dataset', dataset))
    return dict(zip([name.strip() for name in classes], class_words(classes, **rules)))


def test_published_words():
    for protocol in ('proxyclip', 'fsa', 'sclip', 'clearclip'):
        assert words_of(protocol, 'voc20')['boat'] == ['ship']
        assert words_of(protocol, 'voc21')['diningtable'] == ['table']
        assert words_of(protocol, 'coco_object')['dining table'] == ['dining table']
        assert words_of(protocol, 'context60')['background'] == ['background']
        assert words_of(protocol, 'ade20k')['chest of drawers'] == ['chestofdrawers']
    assert (
        words_of('clearclip', 'voc21')['background']
        == words_of('clearclip', 'coco_object')['background']
        == ['background']
    )
    voc = words_of('proxyclip', 'voc21')['background']
    assert len(voc) == 26 and {'lamp', 'wardrobe', 'stair', 'fence'} < set(voc)
    assert words_of('sclip', 'voc21')['background'] == words_of('sclip', 'coco_object')['background'] == voc
    coco = words_of('proxyclip', 'coco_object')['background']
    assert len(coco) == 17 and set(coco) < set(voc) and not {'lamp', 'fence'} & set(coco)
    assert words_of('proxyclip', 'voc21')['person'] == ['person']
    assert len(words_of('sclip', 'voc20')['person']) == 7 and 'screen' in words_of('sclip', 'voc20')['tvmonitor']
    assert words_of('sclip', 'coco_object')['person'] == [*words_of('sclip', 'voc20')['person'], 'body']
    assert words_of('sclip', 'coco_object')['tv'] == ['tv']


def test_spaces_are_removed_where_published():
    for protocol in ('proxyclip', 'fsa', 'sclip', 'clearclip'):
        for dataset in ('ade20k', 'cityscapes', 'coco_stuff164k', 'coco_object'):
            rules = protocol_settings(load_component('protocol', protocol), dataset)['words']
            words = sum(class_words(class_names(load_component('dataset', dataset)), **rules), [])
            if dataset in ('ade20k', 'cityscapes', 'coco_stuff164k'):
                assert not any(' ' in word for word in words)
            if dataset == 'coco_object':
                assert 'traffic light' in words


def test_words_file(tmp_path):
    path = tmp_path / 'words.txt'
    path.write_text('sky; wall\nship\ntraffic light\nperson ; body;\n')
    assert read_words(str(path), CLASSES) == [['sky', 'wall'], ['ship'], ['traffic light'], ['person', 'body']]
    path.write_text('sky\nship\n')
    with pytest.raises(UserError, match='2 classes, but the data set has 4'):
        read_words(str(path), CLASSES)
    path.write_text('sky\n;\na\nb\n')
    with pytest.raises(UserError, match="no word for class 1 .'boat'"):
        read_words(str(path), CLASSES)
    with pytest.raises(UserError, match='none.txt.*cannot be read'):
        read_words(str(tmp_path / 'none.txt'), CLASSES)


@pytest.fixture
def clip():
    torch.manual_seed(0)
    vision = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
    model = open_clip.CLIP(16, vision, dict(context_length=24, vocab_size=49408, width=16, heads=2, layers=1)).eval()
    return model, open_clip.SimpleTokenizer(context_length=24)


def encoded(clip, words, folder):
    """Return the rows of words, by an encoder that has seen none of them."""
    return TextEncoder(*clip, cache_dir=str(folder)).encode([[word] for word in words]).rows


def test_two_towers_that_differ_in_pooling_or_mask_share_no_embedding(clip, tmp_path):
    """Their weights, and the digest of them, are the same."""
    model, _ = clip
    texts = [encoded(clip, ['cat'], tmp_path)]
    model.text_pool_type = 'first'
    texts.append(encoded(clip, ['cat'], tmp_path))
    model.attn_mask.zero_()
    texts.append(encoded(clip, ['cat'], tmp_path))
    assert len(list(tmp_path.rglob('*.safetensors'))) == 3
    assert not torch.equal(texts[0], texts[1]) and not torch.equal(texts[1], texts[2])


def test_the_image_tower_and_the_scale_are_no_part_of_the_text_tower(clip, tmp_path):
    model, tokenizer = clip
    tower = TextEncoder(model, tokenizer, str(tmp_path)).tower
    model.visual.proj.data += 1
    model.logit_scale.data += 1
    assert TextEncoder(model, tokenizer, str(tmp_path)).tower == tower
    model.token_embedding.weight.data[0] += 1
    assert TextEncoder(model, tokenizer, str(tmp_path)).tower != tower


def test_embeddings_are_means_over_templates(clip, tmp_path):
    model, tokenizer = clip
    text = encoded(clip, ['cat', 'traffic light'], tmp_path)
    assert text.shape == (2, 16) and text.dtype == torch.float32
    assert TEMPLATES == open_clip.OPENAI_IMAGENET_TEMPLATES and len(TEMPLATES) == 80
    with torch.no_grad():
        rows = model.encode_text(tokenizer([template('traffic light') for template in TEMPLATES]), normalize=True)
    expected = torch.nn.functional.normalize(rows.mean(0), dim=0)
    torch.testing.assert_close(text[1], expected, atol=1e-5, rtol=1e-5)


def test_rows_are_those_of_open_clips_classifier(clip, tmp_path):
    """Whole contexts and ten words at a time give the same, and so does another order of the words."""
    words = [f'thing {i}' for i in range(11)]
    rows = encoded(clip, words, tmp_path / 'one')
    expected = open_clip.build_zero_shot_classifier(*clip, words, TEMPLATES)
    torch.testing.assert_close(rows, expected.T, atol=1e-6, rtol=0)
    assert torch.equal(encoded(clip, words[::-1], tmp_path / 'other'), rows.flip(0))


@pytest.mark.parametrize('change', ['none', 'pooling', 'mask', 'class'])
def test_prompts_are_cut_where_the_tower_allows_it(clip, change, monkeypatch):
    """A causal tower has nothing to do behind the longest end-of-text token; other towers get all tokens."""
    model, tokenizer = clip
    if change == 'pooling':
        model.text_pool_type = 'last'
    elif change == 'mask':
        model.attn_mask.zero_()
    elif change == 'class':
        model.__class__ = type('OwnCLIP', (type(model),), {})
    lengths = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    tokens = tokenizer(['a cat', 'a photo of a traffic light'])
    with torch.no_grad():
        cut = embed_prompts(model, tokens)
        torch.testing.assert_close(cut, model.encode_text(tokens), atol=1e-6, rtol=0)
    assert lengths == [int(tokens.argmax(-1).max()) + 1 if change == 'none' else 24, 24]


def test_each_word_is_embedded_once(clip, tmp_path, monkeypatch):
    """Whatever the order and the company of the words; a damaged file is made again."""
    calls = []
    monkeypatch.setattr(text_module, 'embed_word', lambda *given: calls.append(given[2]) or embed_word(*given))
    first = encoded(clip, ['cat', 'dog', 'fox'], tmp_path)
    assert torch.equal(encoded(clip, ['fox', 'cat', 'dog', 'cat'], tmp_path), first[[2, 0, 1, 0]])
    assert calls == ['cat', 'dog', 'fox']
    encoder = TextEncoder(*clip, cache_dir=str(tmp_path))
    for _ in range(2):
        text = encoder.encode([['dog', 'hen'], ['cat']])
    assert calls[3:] == ['hen'] and text.words_per_class == (2, 1) and text.queries == ('dog', 'hen', 'cat')
    clip[0].text_projection.data *= -1
    encoded(clip, ['cat'], tmp_path)
    assert calls[4:] == ['cat']
    paths = list(tmp_path.rglob('*.safetensors'))
    assert len(paths) == 5
    for path in paths:
        path.write_bytes(path.read_bytes()[:20])
    encoded(clip, ['cat'], tmp_path)
    assert calls[5:] == ['cat']


def test_words_of_several_threads(clip, tmp_path):
    words = [f'word {i}' for i in range(12)]
    expected = encoded(clip, words, tmp_path / 'alone')
    encoder = TextEncoder(*clip, cache_dir=str(tmp_path / 'threads'))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda start: encoder.encode([words[start : start + 5]]).rows, range(8)))
    for start, found in enumerate(rows):
        assert torch.equal(found, expected[start : start + 5])


def test_processes_that_start_together_embed_a_word_once(clip, tmp_path, monkeypatch):
    """Each encoder stands for a process: a lease is a file, and rows come from disk."""
    calls, words = [], [[f'word {i}'] for i in range(6)]
    monkeypatch.setattr(text_module, 'embed_word', lambda *given: calls.append(given[2]) or embed_word(*given))
    encoders = [TextEncoder(*clip, cache_dir=str(tmp_path)) for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        rows = list(pool.map(lambda encoder: encoder.encode(words).rows, encoders))
    assert sorted(calls) == sorted(sum(words, [])) and all(torch.equal(found, rows[0]) for found in rows)
    assert not list(tmp_path.rglob('*.lease'))


def test_a_cache_that_cannot_be_written(clip, tmp_path, capsys):
    (tmp_path / 'file').touch()
    rows = encoded(clip, ['cat'], tmp_path / 'file')
    assert torch.equal(rows, encoded(clip, ['cat'], tmp_path / 'folder'))
    assert capsys.readouterr().err.count('the text embeddings are not kept') == 1


def test_class_names_of_a_file(tmp_path):
    """A class of several words is queried by each of them, unless a protocol names it."""
    path = tmp_path / 'classes.txt'
    path.write_bytes(b'\xef\xbb\xbfcat ;kitten\r\ntraffic light\r\n')  # as an editor on Windows leaves it
    names = read_classes(str(path))
    assert names == ['cat; kitten', 'traffic light']
    assert class_words(names) == [['cat', 'kitten'], ['traffic light']]
    assert class_words(names, join_spaces=True) == [['cat', 'kitten'], ['trafficlight']]
    assert class_words(names, rename={'cat; kitten': 'feline'}) == [['feline'], ['traffic light']]


@pytest.mark.parametrize('other', ['Cat', ' cat ', 'CAT', 'ﬁsh'])
def test_names_that_are_one_text_to_clip(tmp_path, other):
    """What CLIP's own tokenizer makes one: of class names, of words files, and in lists of synonyms."""
    name = {'ﬁsh': 'fish'}.get(other, 'cat')
    tokens = open_clip.SimpleTokenizer()
    assert torch.equal(tokens([name]), tokens([other]))
    path = tmp_path / 'classes.txt'
    path.write_text(f'dog\n{name}\n{other}\n')
    with pytest.raises(
        UserError,
        match=f"line 3 of .*classes.txt is 'cat', as line 2|classes.txt: '{name}' of class 1 .*one text to CLIP",
    ):
        read_classes(str(path))
    path.write_text(f'dog; {name}\nmat\npet; {other}\n')
    for read in (lambda: read_classes(str(path)), lambda: read_words(str(path), ['a', 'b', 'c'])):
        with pytest.raises(
            UserError, match=f"classes.txt: '{name}' of class 0 .*'{other.strip()}' of class 2 .*are one text to CLIP"
        ):
            read()
    path.write_text(f'dog; {name}; {other}\nmat\n')  # of one class
    assert len(read_classes(str(path))) == 2


def test_words_of_a_protocol_and_of_a_segmenter(tmp_path, capsys):
    from fsa_seg import Segmenter
    from fsa_seg.config.components import component_names
    from fsa_seg.config.compose import compose
    from fsa_seg.system.paths import CONFIGS

    for protocol in component_names('protocol'):
        for name in (
            'voc21',
            'voc20',
            'context60',
            'context59',
            'coco_object',
            'coco_stuff164k',
            'cityscapes',
            'ade20k',
        ):
            compose(name, 'clip', None, 'toy', protocol=protocol)
    said = capsys.readouterr().err.splitlines()
    assert all(
        "coco_object: 'bed' of class 0 (background) and 'bed' of class 60 (bed) are one text to CLIP, as published"
        in line
        for line in said
    )  # once a process for each protocol
    text = open(os.path.join(CONFIGS, 'protocols', 'clearclip.py')).read()
    (tmp_path / 'mine.py').write_text(text.replace("'ship'", "'Car'").replace("'clearclip'", "'mine'"))
    with pytest.raises(
        UserError, match="words .mine. of voc21: 'Car' of class 4 .boat. and 'car' of class 7 .*one text"
    ):
        compose('voc21', 'clip', None, 'toy', protocol=str(tmp_path / 'mine.py'))
    with pytest.raises(UserError, match="classes: 'cat' of class 0 .*'Cat' of class 1 .*are one text to CLIP"):
        Segmenter('toy', 'clip', False, 'toy', device='cpu').segment('no image', ['cat; kitten', 'dog; Cat'])
