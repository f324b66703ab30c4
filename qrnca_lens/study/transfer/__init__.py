"""Does the letter stand for the knowledge? Neurons found by letter beside those found by the answer's own text."""
