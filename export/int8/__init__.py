"""Static int8 whose answer for a text does not depend on the batch."""
