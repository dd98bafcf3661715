"""What all benchmarks share: contenders, rounds, samples, results, pictures."""
