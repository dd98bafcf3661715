"""The model card, and a run's upload to the Hub."""
