"""The engine: a model run again and again with hooks, and the only room that sets them."""
