// Why: the maps of one patch, the labels without and with FSA, and the patch's best words.

const OPACITY = 0.65;
const $ = (selector) => element.querySelector(selector);
const clicked = {}; // as in stage.js
let turn = 0, asked = false;

async function show(value) {
  const mine = ++turn;
  say($('.error'), value && value.error);
  const picture = value && value.picture;
  const images = picture ? await Promise.all([picture.url, ...value.rows.map((row) => row.labels)].map(loaded)) : [];
  if (mine !== turn) return;
  $('.empty').hidden = Boolean(value && (picture || value.error));
  $('.found').hidden = !picture;
  if (picture) build(value, images);
  if (picture && asked) bring();
  asked = false;
}

function build(value, images) {
  const { width, height } = value, size = { width, height };
  const pick = (x, y) => {
    window.dispatchEvent(new CustomEvent('fsa-seg-mark', { detail: [x, y] }));
    trigger('pixel', Object.assign(clicked, { x, y }));
  };
  const figure = (content, title, caption) => {
    const frame = framed(content, size, title + ': arrow keys move a cross, Enter shows its patch', pick, null);
    frame.show(value.x, value.y);
    return make('figure', null, frame.node, make('figcaption', null, make('strong', null, title), caption ? make('small', null, caption) : null));
  };
  $('.head h3').textContent = value.title;
  const seconds = value.seconds == null ? null : value.seconds.toFixed(2) + ' s';
  $('.figures').textContent = ['FSA changes ' + percent(value.changed) + ' of the pixels', seconds].filter(Boolean).join(' · ');
  const tiles = value.tiles.map(({ title, caption, url }) => figure(make('img', { src: url, alt: title, draggable: 'false' }), title, caption));
  keepFocus($('.tiles'), tiles);
  const maps = images.slice(1).map(labelsOf), colors = value.classes.map(({ color }) => color), visible = colors.map(() => true);
  keepFocus($('.rows'), maps.map((map, i) => {
    const scale = drawnScale(map.width, map.height), canvas = make('canvas');
    paint(canvas, grounds(images[0], map.width * scale, map.height * scale), regions(map, colors, visible), OPACITY);
    return figure(canvas, value.rows[i].title, value.rows[i].caption);
  }));
  words(value.words);
  $('.line').replaceChildren(...(value.command ? [commandLine(value.command)] : []));
}

// After a click on a result: what it shows comes into view, if none of it is.
function bring() {
  const { top, bottom } = element.getBoundingClientRect(), margin = 120;
  if (top < window.innerHeight - margin && bottom > margin) return;
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  element.scrollIntoView({ block: 'start', behavior: still ? 'auto' : 'smooth' });
}

// New figures in a place; the focus stays on the figure at its position, so that keys can walk from patch to patch.
function keepFocus(place, figures) {
  const focused = [...place.children].findIndex((child) => child.contains(document.activeElement));
  place.replaceChildren(...figures);
  if (focused >= 0 && figures[focused]) figures[focused].querySelector('.clickable').focus({ preventScroll: true });
}

function words(entries) {
  $('.words').hidden = !entries.length;
  const cosines = entries.flatMap((entry) => [entry.without, entry.with]);
  const low = Math.min(...cosines), span = Math.max(...cosines) - low || 1;
  const place = (cosine) => 4 + (92 * (cosine - low)) / span;
  $('.words ol').replaceChildren(...entries.map((entry) => {
    const without = make('span', { class: 'dot hollow' }), after = make('span', { class: 'dot' }), line = make('i');
    const [a, b] = [place(entry.without), place(entry.with)];
    without.style.left = a + '%';
    after.style.left = b + '%';
    after.style.background = entry.color;
    line.style.left = Math.min(a, b) + '%';
    line.style.width = Math.abs(a - b) + '%';
    const label = make('span', { class: 'label' }, swatch(entry.color), make('span', { class: 'name', title: entry.word }, entry.word));
    const value = make('span', { class: 'value' }, entry.without.toFixed(3) + ' → ' + entry.with.toFixed(3));
    return make('li', null, label, make('span', { class: 'track', 'aria-hidden': 'true' }, line, without, after), value);
  }));
}

onPage('fsa-seg-asked', () => { asked = true; });

const update = () => show(props.value).catch(() => say($('.error'), 'The maps could not be drawn: reload the page.'));
watch('value', update);
update();
