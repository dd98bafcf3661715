"""From a source of rows to cleaned, labelled, split and tokenized rows."""
