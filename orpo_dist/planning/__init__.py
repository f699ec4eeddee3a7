"""What a training will need before it runs: memory by part, time, and how to launch it.

Works from a model's config.json alone. The states of the engines are arithmetic; the activations
are those of the real forward and backward pass, run over tensors that hold no data.
"""
