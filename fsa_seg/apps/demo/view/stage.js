// The stage: rows of labels over one picture. Opacity, hidden classes, the slider and the mark need no request.

const SHARES = 5, CHIPS = 24; // classes shown at once; the rest is collapsed
const $ = (selector) => element.querySelector(selector);
const state = { view: 'side', opacity: 0.65, hidden: new Set(), met: new Set(), sides: [0, 1], cut: 50, mark: null, key: null };
const clicked = {}; // one object for all clicks: of those during a request gradio sends the first one's again
let value = null, ground = null, rows = [], pair = null, turn = 0, waiting = false;

const classOf = (index) => value.classes[index] || { name: 'void', full: 'void', color: null };
const isShown = (index) => !state.hidden.has(classOf(index).full);

async function show(next) {
  const mine = ++turn;
  say($('.error'), next && next.error);
  if (next && next.error && next.keep && rows.length) return; // the rows before it still hold
  say($('.note'), next && next.note);
  const picture = next && next.picture;
  const images = picture ? await Promise.all([picture.url, ...next.rows.map((row) => row.labels)].map(loaded)) : [];
  if (mine !== turn) return;
  value = next;
  if (next && next.empty) $('.empty').textContent = next.empty;
  $('.empty').hidden = Boolean(picture) || Boolean(next && next.error);
  build(picture, images);
}

function build(picture, images) {
  const maps = images.slice(1).map(labelsOf);
  const key = picture ? [picture.name, picture.width, picture.height, picture.url.length].join() : null;
  if (key !== state.key) state.mark = null;
  state.key = key;
  for (const { name, full } of value ? value.classes : []) {
    if (name === 'background' && !state.met.has(full)) state.hidden.add(full); // at first it shows the picture itself
    state.met.add(full);
  }
  rows = maps.map((map, i) => row(value.rows[i], i, map));
  $('.rows').replaceChildren(...rows.map((each) => each.figure));
  $('.line').replaceChildren();
  $('.status').textContent = rows.length ? 'Results: ' + rows.map((each) => each.data.title).join(', ') : '';
  pair = null;
  $('.pair').replaceChildren();
  for (const part of ['.tools', '.legend']) $(part).hidden = !rows.length;
  $('.hint').hidden = !(value && value.clickable);
  if (!picture) return;
  const { width, height } = maps[0] || { width: images[0].naturalWidth, height: images[0].naturalHeight };
  const scale = drawnScale(width, height);
  ground = grounds(images[0], width * scale, height * scale);
  if (!rows.length) {
    const canvas = make('canvas'), frame = framed(canvas, picture, picture.name, null, null);
    paint(canvas, ground, null, 0);
    $('.rows').replaceChildren(make('figure', null, frame.node));
    return;
  }
  legend();
  choices();
  arrange();
}

function row(data, index, map) {
  const canvas = make('canvas');
  const pick = value.clickable ? (x, y) => picked(index, x, y) : null;
  const frame = framed(canvas, value.picture, data.title + (pick ? ': arrow keys move a cross, Enter shows why' : ''), pick, hover);
  const reading = make('span', { class: 'reading', hidden: true }), spot = make('span', { class: 'spot', hidden: true });
  frame.node.append(reading, spot);
  const head = make('div', { class: 'head' }, make('h3', null, data.title));
  const caption = data.caption ? make('small', null, data.caption) : null;
  const details = make('div', { class: 'details' }, ...[caption, ...shares(data), links(data)].filter(Boolean));
  const figure = make('figure', { 'data-row': index }, head, frame.node, details);
  return { data, index, map, canvas, frame, reading, spot, details, figure, shapes: null };
}

function shares(data) {
  if (!data.shares) return [];
  const entry = (index) => {
    const share = data.shares[index], { name, full, color } = classOf(index), bar = make('i');
    bar.style.width = 100 * share + '%';
    bar.style.background = color;
    const label = make('span', { class: 'label' }, swatch(color), make('span', { class: 'name', title: full }, name));
    return make('li', null, label, make('span', { class: 'bar' }, bar), make('span', { class: share ? 'value' : 'value none' }, percent(share)));
  };
  const list = (indices) => make('ol', { class: 'shares', 'aria-label': 'Share of the picture' }, ...indices.map(entry));
  const rest = value.legend.slice(SHARES).filter((index) => data.shares[index] > 0);
  const more = rest.length ? collapsed(rest.length + ' more', () => list(rest)) : null;
  return [list(value.legend.slice(0, SHARES)), more];
}

function links(data) {
  if (!data.png && !data.npz && !data.command) return null;
  const line = make('div', { class: 'links' });
  const file = (href, name, about) => href && line.append(make('a', { href, download: true, title: about, 'aria-label': name + ': ' + about + ' of ' + data.title }, name));
  file(data.png, 'PNG', 'labels with their colours');
  file(data.npz, 'NPZ', 'scores of all classes');
  if (!data.command) return line;
  const toggle = make('button', { type: 'button', class: 'small command-of', 'aria-expanded': 'false' }, 'Command');
  toggle.addEventListener('click', () => {
    const open = toggle.getAttribute('aria-expanded') === 'false';
    for (const each of element.querySelectorAll('.command-of')) each.setAttribute('aria-expanded', String(each === toggle && open));
    $('.line').replaceChildren(...(open ? [make('h3', null, data.title), commandLine(data.command)] : []));
  });
  line.append(toggle);
  return line;
}

function legend() {
  const chips = [];
  const press = () => {
    for (const [chip, index] of chips) chip.setAttribute('aria-pressed', String(isShown(index)));
    reshape();
  };
  const chip = (index) => {
    const { name, full, color } = classOf(index);
    const node = make('button', { type: 'button', class: 'chip', title: full, 'aria-pressed': String(isShown(index)) }, swatch(color), make('span', { class: 'name' }, name));
    node.addEventListener('click', () => {
      if (!state.hidden.delete(full)) state.hidden.add(full);
      press();
    });
    chips.push([node, index]);
    return node;
  };
  const all = (text, hide) => {
    const node = make('button', { type: 'button', class: 'plain' }, text);
    node.addEventListener('click', () => {
      state.hidden = new Set(hide ? value.classes.map((each) => each.full) : []);
      press();
    });
    return node;
  };
  const first = value.legend.slice(0, CHIPS).map(chip), rest = value.legend.slice(CHIPS), present = new Set(value.legend);
  const absent = value.classes.filter((_, index) => !present.has(index));
  const still = ({ name, full, color }) => make('span', { class: 'chip absent', title: full }, swatch(color), make('span', { class: 'name' }, name));
  const parts = [rest.length && rest.length + ' smaller', absent.length && absent.length + ' not found'].filter(Boolean);
  const more = parts.length ? collapsed(parts.join(', '), () => make('div', { class: 'more' }, ...rest.map(chip), ...absent.map(still))) : null;
  $('.legend').replaceChildren(...first, make('span', { class: 'all' }, all('Show all', false), all('Hide all', true)), ...(more ? [more] : []));
}

function choices() {
  $('.views').hidden = rows.length < 2;
  if (rows.length < 2) return;
  state.sides = state.sides.map((side, i) => (side < rows.length ? side : i));
  for (const select of element.querySelectorAll('.sides select')) {
    select.replaceChildren(...rows.map(({ data }, i) => make('option', { value: i }, data.title)));
    select.value = state.sides[Number(select.dataset.side)];
  }
}

function arrange() {
  const slider = state.view === 'slider' && rows.length > 1;
  for (const button of element.querySelectorAll('.views button')) {
    button.setAttribute('aria-pressed', String((button.dataset.view === 'slider') === slider));
  }
  $('.sides').hidden = $('.pair').hidden = !slider;
  $('.rows').hidden = slider;
  pair = slider ? compared() : null;
  if (!slider) for (const each of rows) each.figure.append(each.details);
  reshape();
  marked();
}

// Two rows in one frame: the right one is cut at the divider.
function compared() {
  const [left, right] = state.sides.map((side) => rows[side]);
  const canvas = make('canvas'), over = make('canvas', { class: 'over', 'aria-hidden': 'true' });
  const side = (x) => (100 * x < state.cut ? left : right);
  const pick = value.clickable ? (x, y) => picked(side((x + 0.5) / value.picture.width).index, x, y) : null;
  const frame = framed(canvas, value.picture, left.data.title + ' and ' + right.data.title, pick, (x, y) => read(x == null ? null : side(x), x, y));
  const reading = make('span', { class: 'reading', hidden: true });
  const divider = make('div', { class: 'divider', role: 'slider', tabindex: 0, 'aria-label': 'Divider between ' + left.data.title + ' and ' + right.data.title, 'aria-valuemin': 0, 'aria-valuemax': 100 });
  const badges = [['left', left], ['right', right]].map(([place, each]) => make('span', { class: 'badge name ' + place }, each.data.title));
  const cut = (percentage) => {
    state.cut = Math.min(100, Math.max(0, percentage));
    divider.style.left = state.cut + '%';
    divider.setAttribute('aria-valuenow', String(Math.round(state.cut)));
    over.style.clipPath = 'inset(0 0 0 ' + state.cut + '%)';
  };
  const read = (each, x, y) => tell(reading, each, x, y);
  divider.addEventListener('pointerdown', (event) => {
    divider.setPointerCapture(event.pointerId);
    event.preventDefault();
    divider.focus({ focusVisible: false });
  });
  divider.addEventListener('pointermove', (event) => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const box = canvas.getBoundingClientRect();
    cut(100 * (event.clientX - box.left) / box.width);
  });
  divider.addEventListener('keydown', (event) => {
    const step = event.shiftKey ? 10 : 2;
    const to = { ArrowLeft: state.cut - step, ArrowDown: state.cut - step, ArrowRight: state.cut + step, ArrowUp: state.cut + step, Home: 0, End: 100 }[event.key];
    if (to == null) return;
    event.preventDefault();
    cut(to);
  });
  frame.node.append(over, ...badges, reading, divider);
  cut(state.cut);
  const columns = (left === right ? [left] : [left, right]).map((each) => make('div', { class: 'details' }, make('h3', null, each.data.title), each.details));
  $('.pair').replaceChildren(frame.node, make('div', { class: 'both' }, ...columns));
  return { left, right, canvas, over, frame };
}

function tell(node, each, x, y) {
  node.hidden = !each;
  if (!each) return;
  const { map } = each, column = Math.min(map.width - 1, Math.floor(x * map.width)), line = Math.min(map.height - 1, Math.floor(y * map.height));
  const { name, color } = classOf(map.labels[line * map.width + column]);
  node.replaceChildren(swatch(color), make('span', { class: 'name' }, name));
}

function hover(x, y) {
  for (const each of rows) {
    tell(each.reading, x == null ? null : each, x, y);
    each.spot.hidden = x == null;
    if (x == null) continue;
    each.spot.style.left = 100 * x + '%';
    each.spot.style.top = 100 * y + '%';
  }
}

function picked(index, x, y) {
  state.mark = [x, y];
  marked();
  window.dispatchEvent(new CustomEvent('fsa-seg-asked'));
  trigger('pixel', Object.assign(clicked, { row: index, x, y }));
}

function marked() {
  const [x, y] = state.mark || [null, null];
  for (const each of rows) each.frame.show(x, y);
  if (pair) pair.frame.show(x, y);
}

function reshape() {
  for (const each of rows) each.shapes = null;
  repaint();
}

function repaint() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!rows.length) return;
    const targets = pair ? [[pair.left, pair.canvas], [pair.right, pair.over]] : rows.map((each) => [each, each.canvas]);
    const colors = value.classes.map(({ color }) => color), visible = value.classes.map((_, index) => isShown(index));
    for (const [each, canvas] of targets) {
      each.shapes = each.shapes || regions(each.map, colors, visible);
      paint(canvas, ground, each.shapes, state.opacity);
    }
  });
}

for (const button of element.querySelectorAll('.views button')) {
  button.addEventListener('click', () => { state.view = button.dataset.view; arrange(); });
}
for (const select of element.querySelectorAll('.sides select')) {
  select.addEventListener('change', () => { state.sides[Number(select.dataset.side)] = Number(select.value); arrange(); });
}
$('.opacity input').addEventListener('input', (event) => {
  state.opacity = event.target.value / 100;
  event.target.style.setProperty('--filled', event.target.value + '%');
  $('.opacity output').textContent = event.target.value + ' %';
  repaint();
});

// A patch that is chosen on a map is marked on the rows as well.
onPage('fsa-seg-mark', (event) => {
  if (!value || !value.clickable) return;
  state.mark = event.detail;
  marked();
});

const update = () => show(props.value).catch(() => say($('.error'), 'This picture could not be drawn: reload the page.'));
watch('value', update);
update();
