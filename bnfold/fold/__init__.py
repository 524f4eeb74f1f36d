"""The heart of bnfold: where can a frozen batch norm go? Framework-free, numpy only.

Read in this order:

1. `graph`: what the solver sees of a model (tensors, nodes, roles), and the edits that come out.
2. `transact`: one try. A change `t' = p*t + q` spreads over tensors until all is absorbed or one conflicts.
3. `carry`: the table of rules, one for each role (in `carry_weights`, `carry_maps`, `carry_moves`). `moves`
   and `axis_moves` rearrange arrays like data; `equation` splits a change among the operands of a sum.
4. `folding`: the tries for one node. `solve`: in which order for all. `locks` ends hopeless ones early,
   `guard` refuses what loses digits.
5. `absorb`: the new weights (`scaling`: of linear layers; `store`: in their type; `spill`: outside memory).
   `ledger`: what to tell.
"""
