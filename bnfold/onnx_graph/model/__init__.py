"""One model in memory: scopes, nodes, values, constants, and how they are edited."""
