"""Many runs of one configuration with other values in some fields, to find better ones."""
