"""Tables as Markdown."""

from collections.abc import Container, Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Container[str] = ()) -> str:
    """Return a Markdown table.

    >>> print(markdown_table(['name', 'mIoU'], [['a|b', 1.5]], right=['mIoU']))
    | name | mIoU |
    |---|---:|
    | a/b | 1.5 |

    Args:
        head: names of the columns.
        rows: values, as many in each row as there are columns; a bar in a value becomes a slash.
        right: names of the columns whose values stand at the right.
    """
    rules = ['---:' if name in right else '---' for name in head]
    lines = ['|' + '|'.join(rules) + '|', *(markdown_row(row) for row in rows)]
    return '\n'.join([markdown_row(head), *lines])


def markdown_row(values: Sequence[object]) -> str:
    """Return one row of a Markdown table."""
    return '| ' + ' | '.join(str(value).replace('|', '/') for value in values) + ' |'
