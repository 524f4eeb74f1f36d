"""Channels that are constant or that nobody reads: found by proof, and taken out of all layers they pass.

To be read in this order:

    drop            the whole pass, in its steps

    matrices        1. What is proven of each channel (`onnx_graph.ops.interval`): through weights,
    linear_forms       and through several linear layers at once;
    bounds_roles       a rule for each role, beside those of operators (`onnx_graph.ops`),
    bounds             and the walk through the graph.

    groups          2. Which channels can only leave together: the sets,
    sizes              who computes with the number of channels,
    grouping           and how each node passes channels on.

    choose          3. Which sets leave.

    cut_layers      4. The edits: weights and biases,
    cuts               and all other nodes that store something for each channel.
"""
