"""What training and serving must agree on: cleaning, label order, scores, files.

Nothing here needs more than numpy, so a service can import it without torch.
"""
