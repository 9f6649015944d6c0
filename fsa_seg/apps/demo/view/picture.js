// The picture: a file that is chosen, dropped or pasted, or an example, goes to the server as the body of one request.

const $ = (selector) => element.querySelector(selector);
const drop = $('.drop'), input = $('.drop input');
let turn = 0, chosen = null, known = null;

function show(value) {
  known = value;
  const picture = value && value.picture;
  const preview = $('.preview');
  preview.hidden = $('.about').hidden = !picture;
  $('.ask').hidden = Boolean(picture);
  if (picture) {
    preview.src = picture.url;
    preview.alt = picture.name;
    $('.about .name').textContent = picture.name;
    $('.about small').textContent = picture.width + ' × ' + picture.height;
    input.setAttribute('aria-label', 'Choose another picture; now: ' + picture.name);
  }
  const examples = (value && value.examples) || [];
  $('.examples').hidden = !examples.length;
  $('.thumbs').replaceChildren(...examples.map(({ name, url }, index) => {
    const node = make('button', { type: 'button', title: name, 'aria-label': name, 'aria-pressed': String(chosen === index) }, make('img', { src: url, alt: '', loading: 'lazy' }));
    node.addEventListener('click', () => open('example/' + index, null, 'Opening ' + name + ' …', index));
    return node;
  }));
}

function megabytes(bytes) {
  return (bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0) + ' MB';
}

function openFile(file) {
  const limit = known && known.limit, name = file.name || 'pasted picture';
  if (limit && file.size > limit) return fail(name + ' has ' + megabytes(file.size) + '; a picture may have at most ' + megabytes(limit) + '.');
  return open('picture?name=' + encodeURIComponent([...name].slice(-200).join('')), file, 'Opening ' + name + ' …', null);
}

function fail(text) {
  turn++;
  say($('.busy'), '');
  say($('.error'), text);
}

async function open(path, body, text, example) {
  if (!known || !known.page) return fail('The page is not ready yet: wait a moment, or reload the page.');
  const mine = ++turn;
  say($('.error'), '');
  say($('.busy'), text);
  let answer;
  try {
    const reply = await fetch('demo/' + known.page + '/' + path, { method: 'POST', body });
    answer = reply.status === 404 ? { error: 'The server no longer knows this page: reload the page.' } : await reply.json();
  } catch {
    answer = { error: 'The server does not answer. Is fsa-seg demo still running?' };
  }
  if (mine !== turn) return;
  if (!answer.picture) return fail(answer.error || 'The server gave no picture.');
  say($('.busy'), '');
  chosen = example;
  props.value = { ...known, picture: answer.picture };
  show(props.value);
  trigger('opened', { words: answer.words || null });
}

// A drop beside the zone would make the browser leave the page, so that the whole window takes drops.
const hasFiles = (event) => Boolean(event.dataTransfer) && [...event.dataTransfer.types].includes('Files');
onPage('dragover', (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  drop.classList.add('over');
});
onPage('dragleave', (event) => { if (!event.relatedTarget) drop.classList.remove('over'); });
onPage('drop', (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  drop.classList.remove('over');
  if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});
onPage('paste', (event) => {
  const file = [...((event.clipboardData && event.clipboardData.files) || [])].find(({ type }) => type.startsWith('image/'));
  if (!file) return;
  event.preventDefault();
  openFile(file);
});
input.addEventListener('change', () => {
  if (input.files.length) openFile(input.files[0]);
  input.value = ''; // the same file can be chosen again
});

watch('value', () => show(props.value));
show(props.value);
