"""What training and serving must agree on, written once: cleaning, label order, scores, files.

Everything here needs numpy at most, so that a service can import it without torch.
"""
