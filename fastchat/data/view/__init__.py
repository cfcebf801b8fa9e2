"""View: the preview in the terminal and as a page."""
