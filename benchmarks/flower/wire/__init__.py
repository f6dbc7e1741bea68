"""The Flower app of the wire benchmark."""
