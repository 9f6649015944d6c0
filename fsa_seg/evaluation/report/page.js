'use strict';
// Sorts tables by a column, and shows one pair at a time. Without this script the page shows all pairs.
const value = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number(text.replace('−', '-').replace('+', ''));
  return text !== '' && !Number.isNaN(number) ? number : text;
};
const compare = (a, b) => {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  if (typeof a !== typeof b) return typeof a === 'number' ? -1 : 1;
  return a.localeCompare(b, 'en');
};
const sort = (table, column) => {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute('aria-sort') !== 'descending';
  heads.forEach((head) => head.removeAttribute('aria-sort'));
  heads[column].setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
};
document.querySelectorAll('table.sortable').forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = head.textContent;
    button.addEventListener('click', () => sort(table, column));
    head.replaceChildren(button);
  });
});
const chooser = document.getElementById('pair');
if (chooser) {
  const panels = [...document.querySelectorAll('.panel')];
  const show = () => panels.forEach((panel) => { panel.hidden = panel.id !== chooser.value; });
  chooser.parentElement.hidden = false;
  chooser.addEventListener('change', show);
  show();
}
