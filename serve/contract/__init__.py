"""What training and serving must agree on: cleaning, label order, scores, files, and how commands behave.

Nothing here needs more than numpy, so that a service can import it without torch.
"""
