"""The web page of `fsa-seg demo`: pages, server, controls, views, and the view of saved results."""
