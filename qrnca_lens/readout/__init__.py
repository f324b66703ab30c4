"""From a neuron to the logits: what it writes, which tokens that promotes, who feeds it."""
