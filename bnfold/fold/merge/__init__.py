"""Linear nodes that are summed, or stand in a row, become one."""
