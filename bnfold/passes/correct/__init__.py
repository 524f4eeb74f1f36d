"""A quantized model's layers brought back to the float model's means, by their biases.

In reading order: `layers` finds the layers of a QDQ model, `match` the same ones in the float model, `sums`
what they end in, `bias`
gives each a bias of its own and writes into it, `moments` measures, `correct` goes from layer to layer.
"""
