"""The heart of bnfold: where can a frozen batch norm go? Framework-free, numpy only.

Read in this order:

1. `graph`: what the solver sees of a model. `roles`: what its nodes are. `edits`: what comes out.
2. `carry/spread`: one try. A change `t' = p*t + q` spreads over tensors until all is absorbed, or one
   conflicts.
3. `carry/table`: the rules, two for each role (in `carry/layers`, `carry/maps`, `carry/rearranging`). `moves`
   rearranges arrays like data; `carry/equation` splits a change among the operands of a sum.
4. `one_fold`: the tries for one node. `solve`: in which order for all. `carry/locks` ends hopeless ones
   early, `carry/guard` refuses what loses digits.
5. `absorb`: the new weights (`absorb/linear`: of linear layers; `absorb/store`: in their type).
6. On top of these: `merge` makes one node of several, `rescale` brings channels to other sizes.
"""
