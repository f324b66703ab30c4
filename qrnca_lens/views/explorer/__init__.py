"""The explorer: the Jupyter widget and the static page, both on one session and one script."""
