// Where work.cuh finds the values of a tensor, told without the tensor: sizes may be beyond any memory.

#pragma once

#include "work.cuh"

namespace samples {

using namespace bnfold;

// Of one window of one block's part: the place and the offset in its run of each vector, and of each channel how
// many values the window has. Numbers of vectors: [begin, end) of the part, and how many are in the window.
template <int V, Layout L>
BNFOLD_KERNEL(512)
places(long long* place, unsigned* offset, double* values, long long* numbers, long long outer, int channels,
       int inner, int group, int ranks, int window, int unit, int rank, int index) {
    Part<V, L> part({outer, channels, inner, group, ranks, window}, rank);
    part.turn_to(unit);
    const Window<V, L> here(part, index);
    here.template each_vector<4>(
        [](int slot, Place<L>) { return slot; },
        [&](int slot, Place<L> at, unsigned in_run, int loaded) {
            place[slot] = here.origin + static_cast<long long>(at) * V;
            offset[slot] = loaded == slot ? in_run : ~0u;
        });
    if (port::thread() < part.width) values[port::thread()] = here.values_of(port::thread());
    if (port::thread() == 0) {
        numbers[0] = part.begin;
        numbers[1] = part.end;
        numbers[2] = here.count;
        numbers[3] = part.windows();
    }
}

// Division by a number that is not known to the compiler.
BNFOLD_KERNEL(512)
quotients(const unsigned* n, unsigned* out, int count, unsigned d) {
    const Divider divider(d);
    for (int i = port::thread(); i < count; i += port::threads()) out[i] = divider.quotient(n[i]);
}

}  // namespace samples
