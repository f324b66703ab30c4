"""From queries to QR neurons, in a run folder that survives interruption."""
