"""The page in gradio: its controls, and what each event does. An error is a line on the page."""

import functools
import io
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import numpy as np

from fsa_seg.apps.demo import views
from fsa_seg.apps.demo.comparison import FSA_SETTINGS, Row, method_title, preview
from fsa_seg.apps.demo.pages import (
    MAX_FILE,
    MAX_OPEN,
    MAX_PAGES,
    MAX_ROWS,
    MAX_SCORES,
    MAX_WAITING,
    Page,
    Pages,
    Question,
    read_question,
    scores_size,
    unexpected,
)
from fsa_seg.apps.outputs import command_line
from fsa_seg.config.components import load_component
from fsa_seg.errors import UserError
from fsa_seg.evaluation.label_files import label_picture
from fsa_seg.ops.feedback import TERMS
from fsa_seg.system.paths import MINI, find_root

if TYPE_CHECKING:
    from fsa_seg.apps.demo.results import ResultsFolder

TITLE = 'Open-vocabulary segmentation, with and without FSA'
FIRST_ROWS = (Row('sclip', None), Row('sclip', 'fsa'))  # chosen when the page opens: no VFM is needed
FIRST_WORDS = ('person', 'car; taxi', 'road', 'building', 'tree', 'sky')
CHOOSE = 'Choose a cell: its images come by gain, the largest first.'
MOST_FIGURES = 8  # classes of an image whose IoU is shown
FONTS = ('ui-sans-serif', 'system-ui', '-apple-system', 'Segoe UI', 'Roboto', 'Liberation Sans', 'sans-serif')
MONO = ('ui-monospace', 'SFMono-Regular', 'Menlo', 'Consolas', 'Liberation Mono', 'monospace')
CSS = """
.gradio-container { max-width: 1500px !important; }
@media (max-width: 760px) { #patch { flex-wrap: wrap-reverse; } }
#about h1 { margin: 0 0 .25rem; }
#about p { margin: 0 0 .25rem; color: var(--body-text-color-subdued); }
#about p + p { color: var(--body-text-color); font-weight: 600; }
#limits p { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
"""
LIMITS = (
    f'One request at a time uses the model; {MAX_WAITING} more may wait. Pictures and words stay in memory, of the '
    f'{MAX_PAGES} pages used last, and are gone when the page closes.'
)


_entries: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # open picture -> its entry; both go together


class Example(NamedTuple):
    """A picture that the page offers.

    Attributes:
        path: of the picture.
        words: a text for each class; first what the picture shows, then a few words of what it does not show.
    """

    path: str
    words: tuple[str, ...]


SCENES = (
    Example(
        'VOCdevkit/VOC2010/JPEGImages/2008_000251.jpg',
        ('snow', 'grass', 'floor', 'potted plant', 'aeroplane; airplane', 'motorbike', 'computer', 'bus', 'sky'),
    ),
    Example(
        'ade/ADEChallengeData2016/images/validation/ADE_val_00000010.jpg',
        ('grandstand', 'water', 'sand', 'stage', 'book', 'dishwasher', 'poster', 'person', 'bathtub', 'sky'),
    ),
    Example(
        'VOCdevkit/VOC2012/JPEGImages/2007_000227.jpg',
        ('cat; kitten', 'cow', 'car', 'bird', 'wood', 'river', 'cloud', 'dog', 'sheep'),
    ),
    Example(
        'coco_stuff164k/images/val2017/000000021791.jpg',
        ('bush', 'fruit', 'building', 'mountain', 'traffic light', 'airplane', 'person', 'bottle', 'cat'),
    ),
    Example(
        'cityscapes/leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png',
        (
            'vegetation',
            'road',
            'wall',
            'motorcycle',
            'car',
            'bicycle',
            'traffic light',
            'traffic sign',
            'person',
            'bus',
        ),
    ),
    Example(
        'ade/ADEChallengeData2016/images/validation/ADE_val_00000008.jpg',
        ('road', 'house', 'mountain', 'awning', 'washer', 'bus', 'canopy', 'sofa', 'flower', 'sea'),
    ),
)


def find_examples() -> list[Example]:
    """Return the scenes of the toy world that are on this machine."""
    root = find_root(MINI['data_root'])
    found = [Example(os.path.join(root, scene.path), scene.words) for scene in SCENES]
    return [scene for scene in found if os.path.exists(scene.path)]


class Events:
    """What the page's events do. Each method returns new values of the controls that `make_blocks` names.

    Args:
        engine: an `fsa_seg.apps.demo.comparison.Comparison`.
        pages: the open pages.
        examples: the pictures that the page offers.
    """

    def __init__(self, engine: Any, pages: Pages, examples: Sequence[Example] = ()):
        self.engine, self.pages = engine, pages
        self.examples = [example_entry(engine.open(each.path, os.path.basename(each.path))) for each in examples]
        self.rows = {row.title: row for row in engine.rows}
        self.methods = {row.method: method_title(row.method) for row in engine.rows if row.feedback}
        self.forget: Callable[[str], None] = lambda session: None  # gradio's own data of a session

    def load(self, request: gr.Request) -> dict:
        """Open a page for a session; returns the value of the picture's view."""
        page = self.pages.open(request.session_hash)
        return views.picture_value(page.token, MAX_FILE, self.examples)

    def unload(self, request: gr.Request) -> None:
        """Forget a page that a browser has left."""
        self.pages.close(request.session_hash)
        self.forget(request.session_hash)

    def opened(self, event: gr.EventData) -> list:
        """Clear what the page shows of an earlier picture; an example brings its words."""
        words = (event._data or {}).get('words')
        return [gr.skip() if words is None else words, views.stage_value(None), views.why_error()]

    def segment(
        self, request: gr.Request, words: list[str], background: str, titles: list[str], prob_thd: float
    ) -> list[dict]:
        """Segment the page's picture; returns the values of the stage and of 'why', which is empty."""

        def answer(page: Page) -> dict:
            picture = page.opened()
            if not titles:
                raise UserError('no method is chosen: choose at least one, with or without FSA')
            question = read_question(words, background, [self.rows[title] for title in titles], prob_thd)
            with self.pages.turn():
                maps = picture.segment(list(question.classes), question.rows, question.prob_thd)
            return self._stage(page, picture, question, maps)

        value = self._value(request, answer, functools.partial(failed_stage, keep=True))
        return [value, gr.skip() if value.get('error') else views.why_error()]

    def again(
        self, request: gr.Request, words: list[str], background: str, titles: list[str], prob_thd: float
    ) -> list[dict]:
        """Segment again after a change of the threshold; before the first result nothing happens."""
        try:
            page = self.pages.of_session(request.session_hash)
        except UserError:
            return [gr.skip(), gr.skip()]
        if page.question is None and not page.lost:
            return [gr.skip(), gr.skip()]
        return self.segment(request, words, background, titles, prob_thd)

    def pixel(self, event: gr.EventData, request: gr.Request, method: str, *settings: Any) -> list:
        """Look at a pixel that was clicked, under the method of the clicked row; returns method, settings and 'why'."""
        clicked, shown = event._data or {}, [method, *settings]

        def answer(page: Page) -> dict:
            page.opened()
            question, row = page.question, clicked.get('row')
            if question is None:
                raise UserError('there is no result yet: press "Segment"')
            if row is not None and row >= len(question.rows):
                return gr.skip()  # a click on a result that has made room for one of fewer rows
            if row is not None:
                shown[0] = question.rows[row].method
            shown[1:] = self._settings_of(page, shown[0], settings)
            page.pixel = int(clicked['x']), int(clicked['y'])
            return self._why(page, *shown)

        value = self._value(request, answer, views.why_error)
        return [*shown, value]

    def method(self, request: gr.Request, method: str, *settings: Any) -> list:
        """Look at the same pixel under another method; returns settings and 'why'."""
        shown = [*settings]

        def answer(page: Page) -> Any:
            shown[:] = self._settings_of(page, method, settings)
            return self._why(page, method, *shown)

        value = self._value(request, answer, views.why_error)
        return [*shown, value]

    def why(self, request: gr.Request, method: str, *settings: Any) -> Any:
        """Look at the same pixel under other settings; before the first click nothing happens."""

        def answer(page: Page) -> Any:
            if page.lost:
                page.opened()
            return self._why(page, method, *settings)

        return self._value(request, answer, views.why_error)

    def _settings_of(self, page, method, settings):
        """Return FSA's settings for a method: those of the controls, or its own while nobody has changed them."""
        before, page.method = page.method or FIRST_ROWS[0].method, method
        values = dict(zip(FSA_SETTINGS, settings))
        return [*(self.engine.fsa_settings(method) if values == self.engine.fsa_settings(before) else values).values()]

    def _value(self, request, answer, failed):
        """Return what `answer` makes of the request's page, or what `failed` makes of an error's line."""
        return tried(lambda: answer(self.pages.of_session(request.session_hash)), failed)

    def _stage(self, page, picture, question, maps):
        """Return the value of the stage, which shows labels under each row; the page keeps their files."""
        scored = scores_size(question, picture) <= MAX_SCORES
        rows = [
            views.stage_row(
                row.title,
                labels,
                len(question.classes),
                png=f'demo/{page.token}/labels/{i}.png',
                npz=f'demo/{page.token}/scores/{i}.npz' if scored else None,
                command=self._command(picture, question, row.method, row.feedback),
            )
            for i, (row, labels) in enumerate(zip(question.rows, maps))
        ]
        colors = views.shown_colors(len(question.classes), rows)
        value = views.stage_value(
            entry(picture), question.shown, rows, colors, clickable=bool(self.methods), note=threshold_note(question)
        )
        if not page.answer(picture, question, colors, [png(labels, colors) for labels in maps]):
            page.opened()
            return gr.skip()  # the page has another picture by now
        return value

    def _command(self, picture, question, method, feedback, pixel=None):
        """Return the command line that gives the same, with the steps of FSA at a pixel if there is one."""
        engine = self.engine
        line = command_line(
            picture.path or picture.name,
            question.classes,
            method,
            feedback,
            engine.backbone,
            engine.vfm if load_component('method', method).roles else None,
            engine.protocol,
            engine.precision,
            question.prob_thd,
            engine.random_weights,
            labels=None if pixel else 'labels.png',
        )
        if pixel:
            line = line.replace('fsa-seg segment', f'fsa-seg segment --attention {pixel[0]},{pixel[1]}', 1)
        return line

    def _why(self, page, method, *settings):
        """Return the value of 'why' at the page's pixel; without a pixel, or after another result, nothing changes."""
        question, colors, pixel = page.question, page.colors, page.pixel
        if question is None or pixel is None:
            return gr.skip()
        picture, (x, y) = page.opened(), pixel
        values, started = dict(zip(FSA_SETTINGS, settings)), time.perf_counter()
        feedback = 'fsa' if values == self.engine.fsa_settings(method) else values
        with self.pages.turn():
            found = picture.why(question.classes, method, x, y, values, question.prob_thd)
        value = views.why_value(
            found,
            entry(picture),
            picture.preview,
            question.shown,
            colors,
            title=self.methods[method],
            x=x,
            y=y,
            command=self._command(picture, question, method, feedback, (x, y)),
            seconds=time.perf_counter() - started,
        )
        return value if page.question is question else gr.skip()


class ResultsEvents:
    """What the events of the tab of results do.

    Args:
        folder: the results.
        pages: whose turn at the model a computation takes.
    """

    def __init__(self, folder: 'ResultsFolder', pages: Pages):
        self.folder, self.pages = folder, pages

    def cell(self, index: int) -> list[Any]:
        """Open a cell; returns the choices of images, the largest gain first, and the stage of the first image."""

        def answer() -> list[Any]:
            cell = self.folder.cells[index]
            images = self.folder.images(cell)
            choices = [(f'{_gain(image)}  {image.name}', image.name) for image in images]
            return [gr.Dropdown(choices, value=images[0].name), self.image(index, images[0].name)]

        return tried(answer, lambda line: [gr.skip(), failed_stage(line)])

    def step(self, index: int | None, name: str | None, by: int) -> list[Any]:
        """Go to the image `by` places on; returns its name and the stage."""

        def answer() -> list[Any]:
            if index is None or name is None:
                raise UserError('choose a cell first')
            names = [image.name for image in self.folder.images(self.folder.cells[index])]
            other = names[(names.index(name) + by) % len(names)]
            return [other, self.image(index, other)]

        return tried(answer, lambda line: [gr.skip(), failed_stage(line)])

    def image(self, index: int, name: str) -> dict:
        """Show an image; returns the value of the stage."""
        return tried(lambda: self._stage(self.folder.cells[index], name), failed_stage)

    def _stage(self, cell, name):
        """Return the stage of an image: its truth, and the labels of each row."""
        with self.pages.turn():
            shown = self.folder.show(cell, name)
        rows = [views.stage_row('Truth', shown.truth, len(shown.classes), caption='the label file')]
        rows += [
            views.stage_row(row.title, row.labels, len(shown.classes), caption=_figures(row, shown.classes))
            for row in shown.rows
        ]
        notes = dict.fromkeys([*cell.notes, *(note for row in shown.rows for note in row.notes)])
        picture = views.picture_entry(preview(shown.rgb), shown.rgb.shape[:2], shown.name)
        return views.stage_value(picture, shown.classes, rows, shown.palette, note=' '.join(notes) or None)


def threshold_note(question: Question) -> str | None:
    """Return where pixels below the threshold go, if a reader cannot know."""
    if question.prob_thd > 0 and not question.background:
        return f'There is no background class: pixels below the threshold get the first class, {question.shown[0]}.'
    return None


def _gain(image):
    """Return the gain of an image, or else its mIoU, as a short text."""
    if np.isfinite(image.gain):
        return f'{image.gain:+.1f}'
    return f'{image.after:.1f}' if np.isfinite(image.after) else '–'


def _figures(row, classes):
    """Return the figures of a row on an image: mIoU, the IoU of each class, and where the labels come from."""
    best = sorted(row.iou.items(), key=lambda pair: -pair[1])
    each = [f'{classes[label]} {iou:.0f}' for label, iou in best[:MOST_FIGURES]] + ['…'] * (len(best) > MOST_FIGURES)
    return f'mIoU {row.miou:.1f} of this image ({", ".join(each)}); {row.origin}'


def tried(answer: Callable[[], Any], failed: Callable[[str], Any]) -> Any:
    """Return what `answer` returns, or what `failed` makes of the line of its error."""
    try:
        return answer()
    except UserError as error:
        return failed(str(error))
    except Exception as error:
        return failed(unexpected(error))


def failed_stage(line: str, keep: bool = False) -> dict:
    """Return the value of a stage that shows an error, beside the rows that it shows or alone."""
    return views.stage_value(None, error=line, keep=keep)


def entry(picture: Any) -> dict:
    """Return what the views know of an open picture; it is made once, since a large one takes 0.2 s."""
    if picture not in _entries:
        _entries[picture] = views.picture_entry(picture.preview, picture.size, picture.name)
    return _entries[picture]


def example_entry(picture: Any) -> dict:
    """Return what the picture's view knows of an example."""
    return dict(name=os.path.splitext(os.path.basename(picture.name))[0], url=views.webp_address(picture.preview))


def png(labels: np.ndarray, colors: Sequence[Sequence[int]]) -> bytes:
    """Return labels as the content of a PNG file, with a palette where all classes have 8 bits."""
    content = io.BytesIO()
    label_picture(labels, len(colors) - 1, colors).save(content, 'PNG')
    return content.getvalue()


def models(engine: Any) -> str:
    """Return which models answer, under which settings, as Markdown."""
    vfm = f'VFM `{engine.vfm}`' if engine.vfm else 'the VFM of each method'
    where = f'{engine.resolved_precision} on {engine.device}'
    return f'CLIP `{engine.backbone}` · {vfm} · protocol `{engine.protocol}` · {where}'


def make_blocks(events: Events, results: ResultsEvents | None = None, notes: Sequence[str | None] = ()) -> gr.Blocks:
    """Return the page: its controls, and what they do.

    Args:
        events: what the controls do.
        results: what the controls of the tab of results do; None for a page without the tab.
        notes: lines below the title.
    """
    with gr.Blocks(analytics_enabled=False, title=TITLE, fill_width=True) as blocks:
        gr.Markdown('\n\n'.join([f'# {TITLE}', models(events.engine), *filter(None, notes)]), elem_id='about')
        if results is None:
            add_picture(blocks, events)
        else:
            with gr.Tab('Your picture'):
                add_picture(blocks, events)
            with gr.Tab('Results'):
                add_results(results)
        gr.Markdown(LIMITS, elem_id='limits')
        blocks.unload(events.unload)
    return blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


AT_ONCE = dict(queue=False, show_progress='hidden', api_visibility='private')
QUEUED = dict(concurrency_id='model', concurrency_limit=1, api_visibility='private')
LAST = dict(trigger_mode='always_last', **QUEUED)  # of many changes, the last one counts


def add_picture(blocks: gr.Blocks, events: Events) -> None:
    """Add the controls of a picture: open it, name classes, compare rows, and look at a patch."""
    methods = [(title, name) for name, title in events.methods.items()]
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            picture = views.picture_view(elem_id='picture')
            asked = question_controls(list(events.rows))
            segment = gr.Button('Segment', variant='primary', elem_id='segment')
        with gr.Column(scale=3, min_width=320):
            stage = views.stage_view(elem_id='stage')
    with gr.Row(elem_id='patch'):
        with gr.Column(scale=1, min_width=320):
            gr.Markdown('### FSA at one patch')
            method = gr.Dropdown(methods, value=FIRST_ROWS[0].method, label='Method', elem_id='method')
            settings = setting_controls(events.engine.fsa_settings(FIRST_ROWS[0].method))
        with gr.Column(scale=3, min_width=320):
            why = views.why_view(elem_id='why')
    words, *_, threshold = asked
    blocks.load(events.load, None, picture, **AT_ONCE)
    picture.opened(events.opened, None, [words, stage, why], trigger_mode='multiple', **AT_ONCE)
    segment.click(events.segment, asked, [stage, why], show_progress_on=[stage], **QUEUED)
    threshold.input(events.again, asked, [stage, why], show_progress='hidden', **LAST)
    for view in (stage, why):
        view.pixel(events.pixel, [method, *settings], [method, *settings, why], show_progress_on=[why], **LAST)
    method.input(events.method, [method, *settings], [*settings, why], show_progress_on=[why], **LAST)
    for control in settings:
        control.input(events.why, [method, *settings], why, show_progress='hidden', **LAST)


def question_controls(rows: list[str]) -> list[gr.components.Component]:
    """Return the controls of a question: words, background words, rows, threshold.

    Args:
        rows: titles of all rows.
    """
    words = gr.Dropdown(
        list(FIRST_WORDS),
        value=list(FIRST_WORDS),
        multiselect=True,
        allow_custom_value=True,
        label='Words',
        info="a class each, synonyms separated by ';'; Enter adds a word",
        elem_id='words',
    )
    background = gr.Textbox(
        label='Background words',
        info="the first class, shown as 'background'; empty: no such class",
        placeholder='wall; floor; ceiling',
        max_lines=1,
        elem_id='background',
    )
    chosen = gr.Dropdown(
        rows,
        value=[row.title for row in FIRST_ROWS],
        multiselect=True,
        max_choices=MAX_ROWS,
        label='Methods',
        info=f'each without and with FSA; {MAX_ROWS} side by side at most',
        elem_id='rows',
    )
    info = 'a pixel with a lower score gets the first class'
    threshold = slider(0, 1, 0, step=0.01, label='Threshold', info=info, elem_id='threshold')
    return [words, background, chosen, threshold]


def slider(low: float, high: float, value: float, **settings: Any) -> gr.Slider:
    """Return a slider whose number box may be empty or out of range, as it is while a user types.

    gradio shows the nearest number in range when the user leaves the box. Events get that number at once; with gradio's
    own check each such key is an error. (A subclass would not do: gradio writes a .pyi file beside its source.)
    """
    made = gr.Slider(low, high, value, **settings)
    made.preprocess = lambda payload: low if payload is None else min(max(payload, low), high)  # type: ignore
    return made


def add_results(events: ResultsEvents) -> None:
    """Add the controls of results: choose a cell and an image."""
    cells = [(cell.title, index) for index, cell in enumerate(events.folder.cells)]
    cell = gr.Dropdown(cells, value=None, label='Cell', info='mIoU of the whole data set, in percent', elem_id='cell')
    with gr.Row():
        image = gr.Dropdown([], label='Image', info='by the gain of its mIoU', scale=4, elem_id='image')
        back = gr.Button('Previous', size='sm', min_width=100, elem_id='previous')
        on = gr.Button('Next', size='sm', min_width=100, elem_id='next')
    if events.folder.left_out:
        with gr.Accordion(f'{len(events.folder.left_out)} files are left out', open=False):
            gr.Textbox('\n'.join(events.folder.left_out), show_label=False, lines=3)
    stage = views.stage_view(value=views.stage_value(None, empty=CHOOSE), elem_id='shown')
    choice = dict(trigger_mode='always_last', **QUEUED)  # what the fields say is what the stage shows
    cell.input(events.cell, cell, [image, stage], show_progress_on=[stage], **choice)
    image.input(events.image, [cell, image], stage, **choice)
    for button, by in ((back, -1), (on, 1)):
        button.click(
            functools.partial(events.step, by=by), [cell, image], [image, stage], show_progress_on=[stage], **QUEUED
        )


SLIDERS = dict(  # setting of FSA -> lowest and highest value, step, label, what it does
    lam=(0, 10, 0.1, 'λ', 'how much more the most similar patches weigh'),
    p=(0.05, 1, 0.05, 'p', 'probability mass of a row of S that pruning keeps'),
    scale=(1, 80, 1, 'Scale', 'of the cosines under A'),
    uniform_scale=(0, 80, 1, 'Uniform scale', 'of the cosines under a uniform map'),
)


def setting_controls(values: dict) -> list[gr.components.Component]:
    """Return the controls of FSA's settings, in the order of `FSA_SETTINGS`.

    Args:
        values: with which the controls start.
    """
    controls = [
        slider(low, high, values[name], step=step, label=label, info=info, elem_id=name)
        for name, (low, high, step, label, info) in SLIDERS.items()
    ]
    terms = gr.CheckboxGroup(list(TERMS), value=values['terms'], label='Terms', info='whose mean is Â', elem_id='terms')
    return [*controls, terms]


def theme() -> gr.themes.Base:
    """Return gradio's look in blue, with the fonts of the reader's system, and fine print that has enough contrast."""
    look = gr.themes.Default(primary_hue=gr.themes.colors.blue, font=list(FONTS), font_mono=list(MONO))
    return look.set(
        color_accent='*primary_600',
        slider_color='*primary_600',
        body_text_color_subdued='*neutral_600',
        body_text_color_subdued_dark='*neutral_300',
        block_info_text_color='*neutral_600',
        block_info_text_color_dark='*neutral_300',
        button_primary_background_fill='*primary_600',
        button_primary_background_fill_hover='*primary_700',
    )


def mount(app: Any, engine: Any, pages: Pages, examples: Sequence[Example], results: Any, note: str | None) -> None:
    """Mount the page at '/' of an application; see `fsa_seg.apps.demo.server.make_app`."""
    events = Events(engine, pages, examples)
    blocks = make_blocks(events, ResultsEvents(results, pages) if results else None, [note, engine.note])
    blocks.state_session_capacity = MAX_OPEN  # gradio's own copy of the controls of each page
    gr.mount_gradio_app(
        app,
        blocks,
        '/',
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css=CSS,
    )
    events.forget = functools.partial(forget, blocks)


def forget(blocks: gr.Blocks, session: str) -> None:
    """Drop what gradio keeps of a session, which it would keep for an hour: the controls' last values."""
    blocks.app.state_holder.session_data.pop(session, None)
    blocks.app.state_holder.time_last_used.pop(session, None)
    blocks._queue.pending_messages_per_session.pop(session, None)
    blocks._queue.pending_event_ids_session.pop(session, None)
