"""Data sets: their classes, the reading of images and labels, and their preparation."""

import contextlib

with contextlib.redirect_stdout(None):  # mmseg prints debugging lines when it is imported
    import mmseg.datasets  # noqa: F401
