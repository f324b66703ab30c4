"""atlas, the shipped model: its weights, and the recipe that trains it (docs/atlas.md)."""
