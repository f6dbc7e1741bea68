"""`covey demo`: the whole chain on one machine, with text that every machine has."""
