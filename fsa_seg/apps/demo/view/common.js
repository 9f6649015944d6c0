// What the views share: elements, the drawing of labels over a picture, and frames that are clicked.
// Texts from Python are words of users: they become text nodes, never markup.

const VOID = 65535;
const DRAWN = 1024; // longest side of a canvas; a smaller picture is drawn enlarged by a whole number

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function say(node, text) {
  node.textContent = text || '';
  node.hidden = !text;
}

function percent(share) {
  if (share > 0 && share < 0.0005) return '< 0.1 %';
  return (100 * share).toFixed(1) + ' %';
}

function swatch(color) {
  const node = make('span', { class: 'swatch', 'aria-hidden': 'true' });
  if (color) node.style.background = color;
  else node.classList.add('void');
  return node;
}

// A collapsed part, whose content is made when it opens first: 8 rows of 500 classes would slow the page.
function collapsed(title, content) {
  const node = make('details', null, make('summary', null, title));
  node.addEventListener('toggle', () => node.append(content()), { once: true });
  return node;
}

function commandLine(text) {
  const copy = make('button', { type: 'button', class: 'small' }, 'Copy');
  const code = make('code', null, text);
  copy.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = 'Selected';
    }
    setTimeout(() => { copy.textContent = 'Copy'; }, 1500);
  });
  return make('div', { class: 'command' }, code, copy);
}

async function loaded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

function surface(width, height) {
  return Object.assign(document.createElement('canvas'), { width, height });
}

// Listen on the page until the view is gone.
function onPage(type, react) {
  const listen = (event) => (element.isConnected ? react(event) : window.removeEventListener(type, listen));
  window.addEventListener(type, listen);
}

// Labels of a PNG whose R + 256 G is the class.
function labelsOf(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const context = surface(width, height).getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const labels = new Uint16Array(width * height);
  for (let i = 0; i < labels.length; i++) labels[i] = data[4 * i] + 256 * data[4 * i + 1];
  return { width, height, labels };
}

function drawnScale(width, height) {
  return Math.max(1, Math.floor(DRAWN / Math.max(width, height)));
}

// The picture in colour and in grey, at the size of the canvases.
function grounds(image, width, height) {
  const color = surface(width, height);
  const context = color.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const { data } = pixels;
  for (let i = 0; i < data.length; i += 4) data[i] = data[i + 1] = data[i + 2] = (data[i] + data[i + 1] + data[i + 2]) / 3;
  const grey = surface(width, height);
  grey.getContext('2d').putImageData(pixels, 0, 0);
  return { color, grey };
}

function rgba(color) {
  const value = parseInt(color.slice(1), 16);
  return (255 << 24 | (value & 255) << 16 | (value & 65280) | value >> 16) >>> 0;
}

// The visible classes' regions in their colours, with white edges; the rest is transparent.
function regions(map, colors, visible) {
  const scale = drawnScale(map.width, map.height);
  const width = map.width * scale, height = map.height * scale, edge = Math.max(1, Math.round(Math.max(width, height) / 600));
  const canvas = surface(width, height), context = canvas.getContext('2d');
  const pixels = context.createImageData(width, height), out = new Uint32Array(pixels.data.buffer);
  const inks = new Uint32Array(VOID + 1), { labels } = map; // 0 is transparent: a hidden class, and void
  colors.forEach((color, i) => { inks[i] = visible[i] ? rgba(color) : 0; });
  const line = (y) => Math.max(0, Math.floor(y / scale)) * map.width;
  const columns = Uint16Array.from({ length: width + edge }, (_, x) => Math.max(0, Math.floor((x - edge) / scale)));
  for (let y = 0, i = 0; y < height; y++) {
    const here = line(y), above = line(y - edge);
    for (let x = 0; x < width; x++, i++) {
      const column = columns[x + edge];
      const label = labels[here + column], up = labels[above + column], left = labels[here + columns[x]];
      const ink = inks[label];
      out[i] = (label !== up && (ink || inks[up])) || (label !== left && (ink || inks[left])) ? 4294967295 : ink;
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Labels over the picture: under a colour the picture turns grey, so that the colour stays what the legend shows.
function paint(canvas, ground, shapes, opacity) {
  canvas.width = ground.color.width;
  canvas.height = ground.color.height;
  const context = canvas.getContext('2d');
  const layer = (mode, alpha, source) => {
    context.globalCompositeOperation = mode;
    context.globalAlpha = alpha;
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
  };
  if (shapes && opacity > 0) {
    layer('source-over', 1, shapes);
    layer('source-in', opacity, ground.grey);
    layer('destination-over', 1, ground.color);
    layer('source-over', opacity, shapes);
  } else layer('source-over', 1, ground.color);
}

// A frame around a canvas or an image. `pick` gets the pixel of the original that is clicked, or chosen by keys.
function framed(content, size, label, pick, hover) {
  const cross = make('span', { class: 'cross', 'aria-hidden': 'true' });
  const mark = make('span', { class: 'mark', 'aria-hidden': 'true', hidden: true });
  const node = make('div', { class: 'frame' }, content, cross, mark);
  node.style.aspectRatio = size.width + ' / ' + size.height;
  node.style.setProperty('--ratio', size.width / size.height);
  const at = [0.5, 0.5];
  const limit = (value) => Math.min(1, Math.max(0, value));
  const pixel = (value, count) => Math.min(count - 1, Math.floor(limit(value) * count));
  const place = (spot, x, y) => { spot.style.left = 100 * x + '%'; spot.style.top = 100 * y + '%'; };
  const fractions = (event) => {
    const box = content.getBoundingClientRect();
    return [limit((event.clientX - box.left) / box.width), limit((event.clientY - box.top) / box.height)];
  };
  const choose = (x, y) => pick(pixel(x, size.width), pixel(y, size.height));
  const show = (x, y) => {
    mark.hidden = x == null;
    if (mark.hidden) return;
    at[0] = (x + 0.5) / size.width;
    at[1] = (y + 0.5) / size.height;
    place(mark, ...at);
    place(cross, ...at);
  };
  place(cross, ...at);
  content.setAttribute('aria-label', label);
  content.setAttribute('role', pick ? 'button' : 'img');
  if (pick) {
    content.tabIndex = 0;
    content.classList.add('clickable');
    content.addEventListener('click', (event) => choose(...fractions(event)));
    content.addEventListener('keydown', (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (move) {
        at[0] = limit(at[0] + move[0] * (event.shiftKey ? 1 / size.width : 0.025));
        at[1] = limit(at[1] + move[1] * (event.shiftKey ? 1 / size.height : 0.025));
        place(cross, ...at);
        if (hover) hover(...at);
      } else if (event.key === 'Enter' || event.key === ' ') choose(...at);
      else return;
      event.preventDefault();
    });
  }
  if (hover) {
    content.addEventListener('pointermove', (event) => hover(...fractions(event)));
    content.addEventListener('pointerleave', () => hover(null));
    content.addEventListener('blur', () => hover(null));
  }
  return { node, show };
}
