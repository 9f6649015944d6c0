"""Progress on standard error: bars on a terminal, few lines in a log that is no terminal."""

import io
import os
import sys
import time

from tqdm import tqdm

EVERY = 120.0  # seconds between two lines where standard error is no terminal


class Bar(tqdm):
    """tqdm's bar on a terminal; elsewhere a whole line every two minutes, and none for what takes less.

    Takes tqdm's arguments.
    """

    def __init__(self, *args, **options):
        self._lines, self._last = not sys.stderr.isatty(), time.monotonic()
        if self._lines:
            options.update(file=io.StringIO(), leave=False)  # `display` prints
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the bar as it stands; tqdm calls it whenever the bar has changed."""
        if not self._lines:
            return super().display(msg, pos)
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            print(str(self).strip(), file=sys.stderr, flush=True)
        return None


def note(message: str) -> None:
    """Print a line to standard error, above the bars; of several processes the main process alone prints."""
    if os.environ.get('RANK', '0') == '0':
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
