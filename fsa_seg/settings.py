"""Types and ranges of all settings.

The same rules hold in components, protocols, complete configs and `--cfg-options`.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fsa_seg.errors import UserError

LARGEST_SIDE = 2**15  # pixels of a window or a resized side
LOG_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')


class Rule(NamedTuple):
    """A rule that a setting's value must fit.

    Attributes:
        fits: function of a value; returns whether the rule allows the value.
        allowed: the allowed values in words, for the error message.
    """

    fits: Callable[[object], bool]
    allowed: str


def whole(low: int, high: int = 2**63 - 1) -> Rule:
    """Return the rule that allows whole numbers from `low` to `high`, both included."""
    upper = f' to {high}' if high < 2**63 - 1 else ' or more'
    return Rule(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        f'a whole number, {low}{upper}',
    )


def number(low: float, high: float, above: bool = False) -> Rule:
    """Return the rule that allows finite numbers from `low` to `high`; `above` excludes `low` itself."""
    return Rule(
        lambda value: is_number(value) and (low < value if above else low <= value) and value <= high,
        f'a number, {"above " if above else ""}{low} {"and at most" if above else "to"} {high}',
    )


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; a bool is no number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def choice(*values: object) -> Rule:
    """Return the rule that allows these values alone."""
    return Rule(
        lambda value: any(value is allowed or type(value) is type(allowed) and value == allowed for allowed in values),
        'one of ' + ', '.join(map(repr, values)),
    )


def either(*rules: Rule) -> Rule:
    """Return the rule that allows what any rule of `rules` allows."""
    return Rule(lambda value: any(rule.fits(value) for rule in rules), ', or '.join(rule.allowed for rule in rules))


def list_of(rule: Rule, least: int = 0, most: int | None = None) -> Rule:
    """Return the rule that allows lists and tuples.

    Args:
        rule: rule of every element.
        least: smallest number of elements.
        most: largest number of elements; None for no limit.
    """
    count = f'{least} values' if least == most else 'a list'
    return Rule(
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) >= least
            and (most is None or len(value) <= most)
            and all(map(rule.fits, value))
        ),
        f'{count}, each {rule.allowed}',
    )


def dict_of(rule: Rule, keys: Rule | None = None) -> Rule:
    """Return the rule that allows dicts.

    Args:
        rule: rule of every value.
        keys: rule of every key; None for texts.
    """
    keys = keys or TEXT
    return Rule(
        lambda value: isinstance(value, dict) and all(map(rule.fits, value.values())) and all(map(keys.fits, value)),
        f'a dict, each value {rule.allowed}',
    )


FLAG = choice(True, False)
NONE = choice(None)
TEXT = Rule(lambda value: isinstance(value, str) and bool(value.strip()) and '\0' not in value, 'a text')
ANY_TEXT = Rule(lambda value: isinstance(value, str) and '\0' not in value, 'a text')
WEIGHT_ARGUMENTS = (
    'checkpoint_path',
    'pretrained',
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'pretrained_strict',
    'cache_dir',
)
ARCHITECTURE = Rule(
    lambda value: isinstance(value, dict) and not set(value) & set(WEIGHT_ARGUMENTS),
    f'a dict of arguments of the architecture, without {", ".join(WEIGHT_ARGUMENTS)}: '
    'weights are named by `checkpoint`',
)
MAPPING = Rule(lambda value: isinstance(value, dict), 'a dict')
SEED = whole(0)
RANDOM = either(SEED, NONE)
COLOR = list_of(number(-1e6, 1e6), 3, 3)
SCALES = list_of(number(0, 1e6, above=True), 3, 3)
LABEL = whole(0, 2**31 - 1)
IMPORTS = dict_of(list_of(TEXT))

SEGMENTOR = dict(
    type=TEXT,
    method=either(MAPPING, TEXT, NONE),
    backbone=MAPPING,
    vfm=either(MAPPING, NONE),
    feedback=either(MAPPING, NONE),
    refinement=either(MAPPING, NONE),
    words=either(list_of(list_of(TEXT)), NONE),
    window=whole(0, LARGEST_SIDE),
    stride=whole(1, LARGEST_SIDE),
    fit=choice(None, 'stretch', 'pad'),
    stage=either(MAPPING, TEXT, NONE),
    logit_scale=number(0, 1e6, above=True),
    prob_thd=number(0, 1),
    area_thd=either(number(0, 1), NONE),
    precision=choice('auto', 'fp32', 'fp16', 'bf16'),
    keep_scores=FLAG,
    text_cache=either(TEXT, NONE),
    window_batch=either(whole(1, 2**16), choice('auto')),
    compile=FLAG,
)
BACKBONE = dict(
    name=TEXT,
    toy=FLAG,
    licence=ANY_TEXT,
    fsa=MAPPING,
    custom_imports=IMPORTS,
    model=TEXT,
    pretrained=either(TEXT, NONE),
    checkpoint=either(TEXT, NONE),
    quick_gelu=either(FLAG, NONE),
    mean=either(COLOR, NONE),
    std=either(SCALES, NONE),
    cache_dir=either(TEXT, NONE),
    random_weights=RANDOM,
)
VFM = dict(
    name=TEXT,
    toy=FLAG,
    licence=ANY_TEXT,
    fsa=MAPPING,
    custom_imports=IMPORTS,
    type=TEXT,
    model=TEXT,
    checkpoint=either(TEXT, NONE),
    model_args=either(ARCHITECTURE, NONE),
    mean=either(COLOR, NONE),
    std=either(SCALES, NONE),
    pos_embed=TEXT,
    features=either(TEXT, NONE),
    scope=choice('window', 'image'),
    random_weights=RANDOM,
)
DATASET = dict(
    name=TEXT,
    type=TEXT,
    data_root=either(ANY_TEXT, NONE),
    data_prefix=dict_of(ANY_TEXT),
    ann_file=ANY_TEXT,
    images=either(whole(1), list_of(whole(1), 1), NONE),
    classes=TEXT,
    metainfo=MAPPING,
    img_suffix=TEXT,
    seg_map_suffix=TEXT,
    reduce_zero_label=FLAG,
    ignore_index=LABEL,
    custom_imports=IMPORTS,
    indices=either(list_of(whole(0), 1), NONE),
    test_mode=choice(True),
    serialize_data=FLAG,
    lazy_init=FLAG,
    pipeline=list_of(MAPPING),
    max_refetch=whole(1),
)
PROTOCOL = dict(
    short=whole(1, LARGEST_SIDE),
    window=SEGMENTOR['window'],
    stride=SEGMENTOR['stride'],
    fit=SEGMENTOR['fit'],
    logit_scale=SEGMENTOR['logit_scale'],
    prob_thd=SEGMENTOR['prob_thd'],
    area_thd=SEGMENTOR['area_thd'],
    refinement=SEGMENTOR['refinement'],
    words=MAPPING,
    method=dict_of(MAPPING),
    feedback=dict_of(MAPPING),
)
WORD_RULES = dict(
    rename=either(dict_of(TEXT), NONE),
    synonyms=either(dict_of(list_of(TEXT, 1)), NONE),
    background=either(list_of(TEXT), NONE),
    join_spaces=FLAG,
)
RUNTIME = dict(
    default_scope=choice('mmseg'),
    launcher=choice('none', 'pytorch', 'slurm', 'mpi'),
    log_level=choice(*LOG_LEVELS),
    work_dir=TEXT,
    workers=either(whole(0, 1024), choice('auto')),
    batch_size=either(whole(1, 2**16), choice('auto')),
    window_batch=SEGMENTOR['window_batch'],
    compile=FLAG,
    log_interval=whole(1, 2**31),
    save_labels=FLAG,
    visualizer=either(MAPPING, NONE),
    env_cfg=MAPPING,
    model_wrapper_cfg=MAPPING,
    cell=MAPPING,
    known_images=DATASET['images'],
    model=MAPPING,
    test_dataloader=MAPPING,
    test_evaluator=MAPPING,
    test_cfg=MAPPING,
    default_hooks=dict_of(either(MAPPING, NONE)),
    custom_hooks=list_of(MAPPING),
    custom_imports=IMPORTS,
)
METRIC = dict(type=TEXT, ignore_index=LABEL, prefix=either(TEXT, NONE), root=ANY_TEXT, field=TEXT)
LOADER = dict(
    batch_size=whole(1, 2**16),
    num_workers=whole(0, 1024),
    persistent_workers=FLAG,
    sampler=MAPPING,
    dataset=MAPPING,
    pin_memory=FLAG,
)
LOOP = dict(type=TEXT, fp16=FLAG)
CELL = dict(
    dataset=TEXT,
    method=TEXT,
    title=TEXT,
    feedback=either(TEXT, NONE),
    backbone=TEXT,
    vfm=either(TEXT, NONE),
    protocol=TEXT,
    words=TEXT,
    limit=either(whole(1), NONE),
    changed=list_of(TEXT),
    toy=FLAG,
    toy_models=FLAG,
    toy_data=FLAG,
    random_weights=RANDOM,
)


def check_values(settings: Mapping[str, object], rules: Mapping[str, Rule], where: str) -> None:
    """Raise a UserError if a setting's value does not fit its rule. A setting without a rule passes.

    Args:
        settings: setting -> value.
        rules: setting -> rule.
        where: names the settings' mapping in the message, such as 'model'.
    """
    for key, value in settings.items():
        if key in rules and not rules[key].fits(value):
            raise UserError(f'{where}: {key} is {value!r}; it has to be {rules[key].allowed}')
