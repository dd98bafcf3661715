"""Sources of rows -> cleaned, labelled, split and tokenized rows."""
